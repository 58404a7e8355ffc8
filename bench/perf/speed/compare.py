"""Medians, bandwidths and the speed-up over the best of the others, derived from measured records."""

import statistics
from dataclasses import dataclass

from bench.perf.peers import OURS

DIRECTIONS = ("forward", "backward", "forward+backward", "evaluation")


@dataclass(frozen=True)
class Comparison:
    """normreg and the best of the others on one case in one direction; times in microseconds."""

    case: str
    direction: str
    least_bytes: int
    device: list  # normreg's samples
    end_to_end: list
    copy_gb_per_s: float
    best: str | None  # of the others by device time
    best_device: float | None
    best_end_to_end: float | None  # the best of the others', maybe not the same peer's

    @property
    def gb_per_s(self):
        """The bandwidth of the least bytes, whatever was moved in fact."""
        return self.least_bytes / statistics.median(self.device) / 1e3

    @property
    def copy_fraction(self):
        return self.gb_per_s / self.copy_gb_per_s

    @property
    def speed_up(self):
        return self.best_device / statistics.median(self.device) if self.best else None

    @property
    def end_to_end_speed_up(self):
        return self.best_end_to_end / statistics.median(self.end_to_end) if self.best else None


def comparisons(records):
    """Returns a Comparison for each case and direction that normreg was timed in."""
    by_case = {}
    for record in records:
        if "peer" in record:
            by_case.setdefault(record["case"], {})[record["peer"]] = record
    found = []
    for case, by_peer in by_case.items():
        ours = by_peer.pop(OURS, None)
        for direction, times in (ours["times"] if ours else {}).items():
            others = {
                peer: {
                    clock: statistics.median(samples) for clock, samples in record["times"][direction].items()
                }
                for peer, record in by_peer.items()
                if direction in record["times"]
            }
            best = min(others, key=lambda peer: others[peer]["device_us"], default=None)
            found.append(
                Comparison(
                    case,
                    direction,
                    ours["least_bytes"][direction],
                    times["device_us"],
                    times["end_to_end_us"],
                    ours["copy_gb_per_s"],
                    best,
                    others[best]["device_us"] if best else None,
                    min(other["end_to_end_us"] for other in others.values()) if best else None,
                )
            )
    return found


def refusals(records):
    """Returns (case, peer, why) for everything that was not timed."""
    return [(record["case"], record["peer"], record["refused"]) for record in records if "refused" in record]


HEADERS = (
    "case | direction | us | p20-p80 | GB/s | % of copy | best other | us | speed-up | end to end us | "
    "speed-up"
)


def rows(records):
    found = []
    for one in comparisons(records):
        p20, _, _, p80 = statistics.quantiles(one.device, n=5)
        found.append(
            (
                one.case,
                one.direction,
                f"{statistics.median(one.device):.1f}",
                f"{p20:.1f}-{p80:.1f}",
                f"{one.gb_per_s:.0f}",
                f"{one.copy_fraction:.0%}",
                one.best or "none",
                f"{one.best_device:.1f}" if one.best else "-",
                f"{one.speed_up:.2f}" if one.best else "-",
                f"{statistics.median(one.end_to_end):.1f}",
                f"{one.end_to_end_speed_up:.2f}" if one.best else "-",
            )
        )
    return found


COST_HEADERS = (
    "case | peer | kept for backward MiB | peak MiB | first call s | compilations | error against float64"
)


def cost_of_compiling(record):
    if record.get("compiled_ahead"):  # so that the first call compiled nothing
        return "-", "-"
    return f"{record['first_call_s']:.2f}", record["compilations"]


def cost_rows(records):
    """A row of memory, compilation and error for each peer and case that was timed."""
    return [
        (
            record["case"],
            record["peer"],
            f"{record['kept_bytes'] / 2**20:.2f}",
            f"{record['peak_bytes'] / 2**20:.2f}",
            *cost_of_compiling(record),
            f"{record['error']:.1e}",
        )
        for record in records
        if record.get("times")
    ]
