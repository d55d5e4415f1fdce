"""Every exception that is raised on purpose.

ToolError                  the message is written for the user: file, tensor, offset, value
├── NumericError           a value that no code could represent honestly (NaN, infinity, bad shape)
├── CheckpointError        a file that cannot be read or does not say what it must
├── UsageError             a wrong option, pattern or configuration entry
└── RepairError            a repair that was refused, or that could not be carried out
"""

from __future__ import annotations


class ToolError(Exception):
    """Base of everything raised on purpose; its message is complete and fit to print."""


class NumericError(ToolError):
    """A value, shape or scale that no code could represent honestly."""


class CheckpointError(ToolError):
    """A checkpoint file that cannot be read."""


class UsageError(ToolError):
    """A wrong option, selector or settings entry."""


class RepairError(ToolError):
    """A repair that was refused, or that could not be carried out."""
