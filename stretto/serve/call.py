"""`Call`: one HTTP request on its way through the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.serve.log import LOGGER, Record, short
from stretto.serve.models import Models
from stretto.serve.service import Service


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler knows besides the body. service: of the model that was asked for; record: for the log; models: all
    of the server."""

    service: Service
    record: Record
    models: Models

    @property
    def id(self) -> str:
        """The value of `x-request-id`."""
        return self.record.id

    @property
    def tenant(self) -> str:
        """Whose request it is; empty without keys."""
        return self.record.tenant

    def space(self, salt: str | None, tenant: str | None = None) -> str:
        """Which texts its prompt may go on from: those of the same key, and with the same salt if it has one.
        tenant: of another key, which only an admin may name."""
        tenant = self.tenant if tenant is None else tenant
        return tenant if salt is None else f"{tenant}/{salt}"

    def note_unknown(self, names: list[str]) -> None:
        """Fields that are no fields of this route were left out."""
        self.note_skipped("unknown fields are ignored", names, "fields")

    def note_skipped(self, event: str, names: Sequence[str], what: str = "types") -> None:
        """One line in the log for all that was left out, if anything was."""
        if names:
            facts = {"id": self.id, what: [short(name) for name in names[:16]], "count": len(names)}
            LOGGER.info(event, extra={"facts": facts})
