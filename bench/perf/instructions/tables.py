"""Tables of the counts of `bench instructions`, and of the times that a model derives from them."""

from bench.harness import tables
from bench.lab.ptx.counting import SECTOR
from bench.lab.ptx.lanes import WARP
from bench.perf.instructions.gpu_model import H100
from bench.perf.peers import OURS

CLASSES = tuple(H100.lanes)
MODEL_HEADERS = ("memory us", "issue us", "pipe us", "largest")
ABSENT = "not installed"  # the reason of a peer that is
WORTH_SHOWING = 0.1  # share of a call's bytes


def lanes_per_element(record, *classes):
    counts = record["warp_instructions"]
    return WARP * sum(counts.get(name, 0) for name in classes or counts) / record["elements"]


def over(numerator, denominator):
    return numerator / denominator if denominator else 0.0


def sectors_over_bytes(record):
    return over(SECTOR * record["sectors"], record["moved_bytes"])


def passes(record):
    """Passes over shared memory per request: 1 for 4 bytes a lane without bank conflicts, 4 for 16 bytes."""
    return over(record["shared_wavefronts"], record["shared_requests"])


def counted(records):
    return [record for record in records if "refused" not in record]


def table(records):
    """Two tables of all launches: counts and times of the model, and instructions by class."""
    counts, classes = [], []
    for record in counted(records):
        launch = [record[name] for name in ("case", "peer", "direction")]
        launch.append(record["kernel"].removesuffix("_kernel"))
        moved = record["dram_bytes"] / record["elements"]
        numbers = [f"{number:.2f}" for number in (moved, sectors_over_bytes(record), passes(record))]
        numbers.append(f"{lanes_per_element(record):.1f}")
        counts.append([*launch, *numbers, *model_cells(record["model"])])
        classes.append([*launch, *(f"{lanes_per_element(record, name):.2f}" for name in CLASSES)])
    launch, numbers = ("case", "by", "direction", "kernel"), ("DRAM B", "sectors/B", "passes", "instr.")
    found = [
        tables.text([*launch, *numbers, *MODEL_HEADERS], counts, grouped=3),
        "Instructions an element, by class:",
        tables.text([*launch, *CLASSES], classes, grouped=3),
    ]
    return tables.explained("\n\n".join([*found, *absent(records), *refusals(records, tables.text)]), WORDS)


def model_cells(model):
    if model is None:
        return ["-"] * len(MODEL_HEADERS)
    times = (f"{model[name]:.2f}" for name in ("memory_us", "issue_us"))
    return [*times, f"{model['pipe_us']:.2f} {model['pipe']}", model["larger"]]


def absent(records):
    """A list with the sentence that names the peers which were not installed; empty where all were."""
    names = sorted({record["peer"] for record in records if record.get("refused") == ABSENT}, key=str.lower)
    return [f"Not counted, because they are not installed: {', '.join(names)}."] if names else []


def refusals(records, write=tables.markdown):
    """A list with the table of what installed libraries did not let count; empty where everything was."""
    refused = [(r["case"], r["peer"], r["refused"]) for r in records if r.get("refused", ABSENT) != ABSENT]
    return [f"Not counted:\n\n{write(('case', 'by', 'why'), refused)}"] if refused else []


def beyond_memory(record):
    """The ratio of the larger of issue and the busiest pipe to memory."""
    model = record["model"]
    return over(max(model["issue_us"], model["pipe_us"]), model["memory_us"])


def modelled_us(record):
    return max(record["model"][name] for name in ("memory_us", "issue_us", "pipe_us"))


def dram_bytes(record):
    return record["dram_bytes"]


def shares(records, of):
    """Each record's share of its call's total: {id of the record: share}."""
    share = {}
    for launches in calls(records).values():
        total = sum(map(of, launches))
        share |= {id(one): of(one) / total for one in launches}
    return share


def worst(records):
    """A table of our kernels that memory does not bound, each with the launch furthest from that bound.

    Launches that move less than a tenth of their call's bytes are left out.
    """
    records = [record for record in counted(records) if record["model"]]
    share, moved, worst_of = shares(records, modelled_us), shares(records, dram_bytes), {}
    for record in records:
        counts = record["peer"] == OURS and moved[id(record)] >= WORTH_SHOWING
        if counts and beyond_memory(record) > 1:
            known = worst_of.setdefault(record["kernel"], record)
            worst_of[record["kernel"]] = max(known, record, key=beyond_memory)
    rows = []
    for record in sorted(worst_of.values(), key=beyond_memory, reverse=True):
        rows.append((f"**{record['kernel'].removesuffix('_kernel')}**", *[""] * (2 + len(MODEL_HEADERS))))
        by_byte = WARP * sum(record["warp_instructions"].values()) / record["dram_bytes"]
        numbers = f"{share[id(record)]:.0%}", f"{by_byte:.1f}", *model_cells(record["model"])
        rows.append((f"{record['direction']}: {record['case']}", *numbers))
    return tables.markdown(("kernel, case", "of the call", "instr./B", *MODEL_HEADERS), rows)


def calls(records):
    """The records of launches by call: {(case, direction, peer): records}."""
    found = {}
    for record in records:
        found.setdefault((record["case"], record["direction"], record["peer"]), []).append(record)
    return found


def beside_peers(records):
    """A table of the calls that a peer made, too, launches added up; None where no peer was counted."""
    records = counted(records)
    shared = {record["case"] for record in records if record["peer"] != OURS}
    rows = []
    for (case, direction, who), launches in calls(records).items():
        if case in shared:
            elements = launches[0]["elements"]
            rows.append(
                (
                    case,
                    direction,
                    who,
                    len(launches),
                    f"{sum(one['dram_bytes'] for one in launches) / elements:.2f}",
                    f"{SECTOR * sum(one['sectors'] for one in launches) / elements:.2f}",
                    f"{sum(map(lanes_per_element, launches)):.1f}",
                    f"{sum(map(modelled_us, launches)):.2f}" if launches[0]["model"] else "-",
                    f"{launches[0]['error']:.1e}",
                )
            )
    headers = ("case", "direction", "by", "launches", "DRAM B", "sectors B", "instr.", "model us", "error")
    return tables.markdown(headers, rows) if rows else None


WORDS = (
    "A line above launches is a case, whose kernels they are, and the direction. DRAM B: bytes an element "
    "that the launch moves. sectors/B: bytes of the 32-byte sectors touched, over the bytes moved. "
    "passes: over shared memory, a request: 1 for 4 bytes a lane without bank conflicts, 4 for 16 bytes. "
    "instr.: instructions of lanes, an element. memory us, issue us and pipe us: what the model expects "
    "that memory, the issue of instructions and the busiest pipe take, which stands behind; largest: what "
    "the launch waits for."
)
WHAT = (
    "Compiled code was executed in host memory and the PTX instructions of its lanes counted, an element. "
    f"What they would take on an {H100.name} is a model, not a measurement: {H100.multiprocessors} "
    f"multiprocessors at {H100.clock_hz / 1e9:.1f} GHz, copies at {H100.copy_bytes_per_s / 1e12:.1f} TB/s, "
    f"which leaves room for {H100.room():.1f} lane instructions a byte moved. Tensors are small, so that "
    "launches which merge partial results weigh more than in large ones."
)
BESIDE = (
    "Kernels of installed peers beside ours, launches of a call together; torch's own operators that a peer "
    "calls in between, as for the last sum over partial gradients, are not in it."
)
