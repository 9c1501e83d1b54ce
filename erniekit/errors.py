"""Everything that ErnieKit raises on purpose.

    ErnieKitError          exit 1
    |- ConfigError         exit 2   a key, a value or a combination of keys is wrong
    |- DataError           exit 2   a data file or a row is wrong
    |- UnsupportedError    exit 2   valid input that this build cannot serve (not built, extra missing)
    |- CheckpointError     exit 1   a checkpoint is damaged or does not fit
    |  `- MissingModelError exit 2  no model of the name that was given is to be had
    `- RunError            exit 1   the run failed (non-finite loss, full disk, ...)
       `- PeerError        exit 76  another process of the run has ended or does not answer

A message says what was given, why it is wrong and what to write instead. The command line
prints it without a traceback and exits with `exit_code`.
"""


class ErnieKitError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class ConfigError(ErnieKitError):
    """A configuration is wrong; all problems of a file are reported in one error."""

    exit_code = 2


class DataError(ErnieKitError):
    """A data file or a row is wrong; the message starts with `file:line`."""

    exit_code = 2


class UnsupportedError(ErnieKitError):
    """The input is valid but this build or this machine cannot serve it."""

    exit_code = 2


class CheckpointError(ErnieKitError):
    """A checkpoint is missing, damaged, or does not fit the model; the message names the file."""


class MissingModelError(CheckpointError):
    """There is no model of the name that was given; says what was tried and what is similar."""

    exit_code = 2


class RunError(ErnieKitError):
    """A run failed after it had started."""


class PeerError(RunError):
    """Another process of the run has ended or does not answer: the cause is told there, not here.

    Its exit code tells the process that started this one that the first failure is another's.
    """

    exit_code = 76
