"""Every error a user can meet, in one tree.

    PlumblineError
    ├── SettingsError         a setting, option or configuration file is wrong
    ├── DataError             training data cannot be used as given
    ├── TrainingError         a training went wrong and was stopped
    ├── ImageError            one image is refused; carries the code of the HTTP contract
    ├── BundleError           a model bundle is incomplete, corrupt or of another schema
    ├── StoreError            a model version or stage does not exist or may not change so
    ├── StartError            a server has nothing to serve
    ├── EngineError           an engine is missing or cannot run this model
    │   └── EngineLostError   a GPU computes nothing more for this process
    ├── CoverageError         prediction sets cannot be had at this coverage
    ├── MonitorError          the monitor's state or a retraining cannot be used as it is
    └── ServiceError          a running service refused a request, or cannot be reached

A message says what is wrong, what was given, what is valid, and how to mend it.
"""

from __future__ import annotations

from typing import Literal

ImageErrorCode = Literal["empty", "too_large", "unsupported_type", "undecodable"]


class PlumblineError(Exception):
    """Base of every error that is the user's to mend; the command line exits with 2."""


class SettingsError(PlumblineError):
    """A setting, command-line option or configuration file is wrong."""


class DataError(PlumblineError):
    """Training or evaluation data cannot be used as given."""


class TrainingError(PlumblineError):
    """Training went wrong in a way that the user can mend, such as a loss that is not finite."""


class ImageError(PlumblineError):
    """One image is refused.

    `code` is one of the error codes of the HTTP contract, so that the service and the training
    name the same fault alike.
    """

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code


class BundleError(PlumblineError):
    """A model bundle is incomplete, corrupt, exchanged or of another schema."""


class StoreError(PlumblineError):
    """A model version or stage does not exist, or may not be changed in this way."""


class StartError(PlumblineError):
    """A server ends while it starts: there is no champion, or it cannot be served."""


class EngineError(PlumblineError):
    """An inference engine is missing, or cannot run this model."""


class EngineLostError(EngineError):
    """A GPU computes nothing more for this process: only a new one can go on."""


class CoverageError(PlumblineError):
    """Prediction sets cannot be had of this model, or not at the coverage asked for."""


class MonitorError(PlumblineError):
    """The monitor's state, or a retraining, cannot be used as it is."""


class ServiceError(PlumblineError):
    """The service answered with an error, or did not answer; `code` is that of the contract.

    `retry_after_seconds` is when to come back, where the service says so (`overloaded`).
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        named = code if status is None else f"{code} ({status})"
        super().__init__(f"{named}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.retry_after_seconds = retry_after_seconds
