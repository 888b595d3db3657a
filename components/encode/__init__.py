from components.encode.component import encode

__all__ = ["encode"]
