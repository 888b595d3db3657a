from components.merge.component import merge

__all__ = ["merge"]
