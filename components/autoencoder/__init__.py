from components.autoencoder.component import autoencoder

__all__ = ["autoencoder"]
