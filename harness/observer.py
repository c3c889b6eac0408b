"""What looks at the machine while a clock runs: other programs and heat, energy, a soak before."""

from harness.disturbance import Watch
from harness.energy import EnergyMeter
from harness.soak import Soak


class Observer:
    """Looks from `begin` to `end`, which is a run's steady part; by itself it looks at nothing.

    Args:
        watch: of the machine.
        energy: a meter of the device.
        soak: says when the steady part may begin.
    """

    def __init__(
        self,
        watch: Watch | None = None,
        energy: EnergyMeter | None = None,
        soak: Soak | None = None,
    ):
        self.watch, self.energy, self.soak = watch, energy, soak
        self.joules = None

    def begin(self) -> None:
        if self.watch:
            self.watch.begin()
        if self.energy:
            self.energy.begin()

    def end(self) -> None:
        if self.energy:
            self.joules = self.energy.end()
        if self.watch:
            self.watch.end()

    def columns(self, samples: int, seconds: float | None, unusual: str | None = None) -> dict:
        """The columns of a row; what was unusual is named in one, None where nothing was.

        Args:
            samples, seconds: of the steady part.
            unusual: about the run itself.
        """
        parts = [part.columns() for part in (self.soak, self.watch) if part]
        words = [unusual, *(part.get("disturbance") for part in parts)]
        row = {name: value for part in parts for name, value in part.items()}
        if self.joules and samples:
            row["energy_joules_per_sample"] = self.joules / samples
            row["average_power_watts"] = self.joules / seconds
        return row | {"disturbance": "; ".join(filter(None, words)) or None}
