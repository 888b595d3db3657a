from components.adopt.component import adopt

__all__ = ["adopt"]
