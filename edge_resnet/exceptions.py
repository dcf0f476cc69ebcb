"""What edge_resnet raises. Each is both an error of this package and the built-in one that a caller would expect."""


class EdgeResnetError(Exception):
    """Base of every error that this package raises on purpose; its text names the thing, the value and the bound."""


class ParameterError(EdgeResnetError, ValueError):
    """A parameter or argument outside its bounds."""


class ModelError(EdgeResnetError, ValueError):
    """A model bundle that is missing, damaged or inconsistent with its card."""


class ImageError(EdgeResnetError, ValueError):
    """An image message that can't be trusted or can't be converted."""


class ResultError(EdgeResnetError, ValueError):
    """A model output that is not a set of scores (not finite, wrong size)."""


class SourceError(EdgeResnetError, OSError):
    """A camera, file or stream that can't be opened or read."""


class FrameError(SourceError):
    """One frame that can't be read; its source goes on with the next."""


class BackendError(EdgeResnetError, OSError):
    """An actuator backend that can't be opened or written."""
