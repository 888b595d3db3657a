"""When a recurring run starts."""

import re
from dataclasses import dataclass

from latentflow.errors import LatentflowError


@dataclass(frozen=True)
class Schedule:
    """When a recurring run starts: by a cron expression of six fields, or every so many seconds."""

    cron: str = ""
    interval_seconds: int = 0
    max_concurrency: int = 1
    enabled: bool = True
    catch_up: bool = False

    def __post_init__(self) -> None:
        if bool(self.cron) == bool(self.interval_seconds):
            raise LatentflowError("A recurring run needs --cron or --interval, one of them.")
        if self.cron and not self.cron.startswith("@") and len(self.cron.split()) != 6:
            raise LatentflowError(
                f"--cron {self.cron!r}: expected six fields, seconds first, such as '0 0 3 * * *' for three at night."
            )
        if not 1 <= self.max_concurrency <= 10:
            raise LatentflowError(f"--max-concurrency should be from 1 to 10, found {self.max_concurrency}.")

    def __str__(self) -> str:
        when = f"cron {self.cron}" if self.cron else f"every {self.interval_seconds} s"
        return (
            f"{when}, {'enabled' if self.enabled else 'disabled'}, at most {self.max_concurrency} at a time, "
            f"missed ones are {'caught up' if self.catch_up else 'left out'}"
        )


def seconds(text: str, option: str) -> int:
    """``90``, ``90s``, ``30m``, ``2h`` or ``1d`` in seconds. Raises LatentflowError."""
    if not (found := re.fullmatch(r"(\d+)([smhd]?)", text.strip())) or not int(found[1]):
        raise LatentflowError(f"{option} {text}: expected a time such as 90s, 30m, 2h or 1d.")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
