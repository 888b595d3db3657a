from components.prerequisites.component import prerequisites

__all__ = ["prerequisites"]
