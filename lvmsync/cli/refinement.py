"""``--minimal``, ``--audit`` and ``--base-data``: a map that is held against the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvmsync.cli.options import Audit, BaseData, Minimal
from lvmsync.errors import UsageError
from lvmsync.names import Comparison, SourceName, WholeDevice

if TYPE_CHECKING:
    from lvmsync.jobs.progress import Report
    from lvmsync.sources import Reading, Source


@dataclass(frozen=True)
class Refinement:
    """How a source's map is to be held against the base.

    Attributes:
        minimal: take only the blocks that differ.
        audit_percent: how much of what counts as unchanged is compared first; None: nothing.
        base_data: where the base is read; None: where the source says.
    """

    minimal: Minimal = False
    audit_percent: Audit = None
    base_data: BaseData = None

    def __post_init__(self) -> None:
        if self.base_data is not None and not self.is_wanted:
            raise UsageError("--base-data is where --minimal and --audit read the base: give one of these as well")
        # Before anything is opened: a device may take an hour to compare.
        if self.audit_percent is not None and not 0 < self.audit_percent <= 100:
            raise UsageError(f"--audit {self.audit_percent:g} is out of range: more than 0, and 100 at the most")

    @property
    def is_wanted(self) -> bool:
        """Whether the base is to be read at all."""
        return self.minimal or self.audit_percent is not None

    def want(self, name: SourceName, reading: Reading) -> Reading:
        """Return ``reading`` with what is needed for this.

        Raises:
            UsageError: the source has no tracker to audit, or no base.
        """
        if isinstance(name, (Comparison, WholeDevice)) and self.audit_percent is not None:
            raise UsageError(f"--audit: {name.word} has no tracker that could miss a change; leave --audit away")
        if isinstance(name, WholeDevice) and self.minimal:
            raise UsageError(f"--minimal: {name.word} has no base; write compare:{name.device.word} instead")
        if isinstance(name, Comparison):
            return reading  # it finds the blocks that differ itself
        return replace(reading, base_source=self.base_data, with_base=self.is_wanted)

    def apply(self, source: Source, report: Report) -> Source:
        """Audit the source, then make its map minimal, as asked for; see `refine`."""
        if not self.is_wanted:
            return source
        from lvmsync.jobs.refine import refine

        return refine(source, report, minimal=self.minimal, audit_percent=self.audit_percent)
