"""The one table of columns: what a results file may hold, and what each of its cells means.

Every list of columns is a query on it, and so is the table in docs/numbers.md (`make docs`).
"""

from typing import NamedTuple

GROUPS = {
    "T": "training",
    "L": "language models",
    "S": "scikit-learn",
    "X": "XGBoost",
    "I": "inference",
    "M": "all",  # every row ends with these
    "R": "several devices",  # training together
    "C": "computed where rows are read",  # older files have it
    "": "some",  # an experiment of its own, or older files only
}


class Column(NamedTuple):
    """A column of results files."""

    name: str
    groups: str  # whose rows have it; a small letter: files of before 0.2 may lack it
    unit: str  # of a number; or `count` (whole numbers), `flag`, `text`, `time`
    meaning: str
    low: float = 0  # smallest and largest believable number
    high: float = 1e15
    choices: tuple[str, ...] = ()  # of a text
    # Of a setting, which readers name where it differs: the value that rows without the column were
    # measured with, and how others are named; without `words` it is `name=value`.
    default: str | float | bool | None = None
    words: str = ""
    configuration: bool = False  # no setting, but rows that differ in it measure different things
    ci95: bool = False  # followed by the half-width of its 95 % interval


# fmt: off
TABLE = [
    Column("batch_size", "T", "count", "in a step of one device", 1, 1e7, configuration=True),
    Column("avg_time_per_epoch", "T", "s", "seconds of the timed epochs over their number. Only "
           "full batches are trained on (another shape would be compiled, tuned and allocated for "
           "anew); the time is that of all samples at their pace", 1e-6, 1e8, ci95=True),
    Column("extrapolated", "T", "flag", "the epoch time was computed from the rate "
           "(`--max_seconds`): first step, then the rest at the steady rate"),
    Column("samples_per_second", "T", "samples/s", "the steady rate, without the first step and "
           "the warm-up steps", 1e-6, 1e9, ci95=True),
    Column("first_step_seconds", "T", "s", "the first step: compilation, allocation, first batch"),
    Column("compute_samples_per_second", "T", "samples/s", "the same steps on a batch that lies "
           "ready in the host's memory (on eight for DistilBERT, scaled to texts as long as the "
           "run's): everything but the data pipeline"),
    Column("input_bound_percent", "T", "%", "how much slower the real run was; over 10, and by "
           "more than the interval, the data pipeline, not the accelerator, set the number; of a "
           "disturbed run that cannot be told", -1e4, 100),
    Column("million_row_trees_per_second", "X", "1e6/s", "rows x trees of a fit", ci95=True),
    Column("predict_million_rows_per_second", "X", "1e6 rows/s", "of a prediction", ci95=True),
    Column("fit_seconds", "SX", "s", "a fit of the whole table", ci95=True),
    Column("matrix_seconds", "X", "s", "binning, the part of a fit before its trees", ci95=True),
    Column("first_iteration_seconds", "X", "s", "the first tree", ci95=True),
    Column("predict_seconds", "SX", "s", "a prediction for 100,000 held-out rows", ci95=True),
    Column("iterations", "S", "count", "rounds of boosting or of the solver, where it has any"),
    Column("library", "X", "text", "`xgboost` or `lightgbm`"),
    Column("trees", "SX", "count", "trees of a fit"),
    Column("depth", "SX", "count", "of a tree, at most"),
    Column("auc", "SX", "ratio", "area under the ROC curve, on the held-out rows"),
    Column("fits", "SX", "count", "fits in the mean; the interval is that of single ones"),
    Column("inferences_per_second", "I", "1/s", "samples over time", ci95=True),
    Column("latency_ms", "I", "ms", "of a whole batch, the median"),
    Column("latency_p90_ms", "I", "ms", "its 90th percentile"),
    Column("latency_p99_ms", "I", "ms", "its 99th percentile"),
    Column("first_inference_seconds", "I", "s", "the first inference, which compiles"),
    Column("load_seconds", "I", "s", "loading the network"),
    Column("question", "L", "text", "what was asked, or a figure of llama-bench: `pp512` is a "
           "prompt of 512 tokens, `tg128` 128 tokens generated from an empty cache; `tg128@d4096` "
           "with 4096 tokens in the cache, `tg128@p4` for four users together"),
    Column("question_iter", "L", "count", "which time it was asked"),
    Column("total_time", "L", "s", "wall clock from the question to the end of the answer"),
    Column("answer", "L", "text", "the answer"),
    Column("answer_char_len", "L", "count", "letters of the answer"),
    Column("chars_per_second", "L", "letters/s", "those over `total_time`"),
    Column("answer_token_len", "L", "count", "tokens of the answer, by the model's tokenizer"),
    Column("tokens_per_second", "L", "tokens/s", "generated tokens over generation time, without "
           "the prompt's, by llama.cpp's counters", 1e-6, 1e7),
    Column("prompt_token_len", "L", "count", "tokens of the prompt; none is skipped, because the "
           "cache is emptied before every answer"),
    Column("prompt_tokens_per_second", "L", "tokens/s", "those over the prompt's time", 1e-6, 1e8),
    Column("time_to_first_token", "L", "s", "what a reader waits"),
    Column("outside_model_percent", "L", "%", "share of the time for sampling and Python"),
    Column("tokens_per_second_each", "l", "tokens/s", "one user's, of several"),
    Column("sustained_ratio", "TlSXI", "ratio", "speed of the last third over the first third; "
           "under 0.9 the machine throttled, or another program came in between", 0, 100),
    Column("runs_timed", "I", "count", "inferences inside the clock"),
    Column("tflops_per_second", "T", "TFLOP/s", "operations of the model (counted, not estimated) "
           "over time; over the peak that `selfcheck.py` measured, it is the share of what the "
           "device can do (MFU)", 0, 1e6),
    Column("bandwidth_gb_per_second", "l", "GB/s", "what generation read: the weights in use and "
           "the cache, for every token"),
    Column("bandwidth_percent", "C", "%", "its share of the memory bandwidth that `selfcheck.py` "
           "measured (a STREAM triad of all cores, or of the GPU): near 100 a faster processor "
           "would not help"),
    Column("peak_memory_gb", "TlSXI", "GB", "on a GPU the framework's peak allocation after the "
           "first step, on a CPU the process' peak resident size; empty where the framework does "
           "not tell; 1 GB = 1e9 bytes", 0, 1e5),
    Column("swap_written_gb", "TSXI", "GB", "written to swap meanwhile, by anything; more than a "
           "trace means that memory was short", -1e5, 1e5),
    Column("weights_gb", "l", "GB", "weights, by llama.cpp's own figures"),
    Column("kv_cache_gb", "l", "GB", "the cache, by the same"),
    Column("compute_buffers_gb", "l", "GB", "what it computes in, by the same"),
    Column("energy_joules_per_sample", "T", "J", "with the package zeus (`pip install "
           '"zeus[apple]"` on a Mac, `zeus` elsewhere): the card on CUDA, the whole chip on a Mac, '
           "package and memory on a Linux processor; compare only within one kind"),
    Column("energy_joules_per_token", "l", "J", "the same, of a generated token"),
    Column("energy_joules_per_fit", "SX", "J", "the same, of a fit"),
    Column("energy_joules_per_inference", "I", "J", "the same, of a sample"),
    Column("average_power_watts", "TlSXI", "W", "that energy over its time"),
    Column("train_loss", "T", "loss", "mean of the last epoch; `nan`, `inf`, or far over guessing: "
           "the device computed nonsense, and terminal, checks and charts say so",
           -float("inf"), float("inf")),
    Column("threads_used", "SX", "count", "what OpenMP really started"),
    Column("placement", "I", "text", "what a reader must know of where it ran"),
    Column("provider_flops_percent", "I", "%", "of the operations, by the asked provider", 0, 100),
    Column("provider_nodes_percent", "I", "%", "of the network's nodes, by the same", 0, 100),
    Column("partitions", "I", "count", "parts that the provider computed as one each"),
    Column("unit_cost_percent", "I", "%", "of Core ML's estimated cost, by the asked unit", 0, 100),
    Column("cosine_similarity", "I", "ratio", "of the answer and the CPU's in float32; a wrong "
           "answer is an error, however fast"),
    Column("largest_relative_difference", "I", "ratio", "of two numbers in the two"),
    Column("gflop", "I", "GFLOP", "operations of one inference of one sample"),
    Column("parameters", "I", "count", "weights of the network"),
    Column("status", "TLSXI", "text", "what became of it: `ok`, `out_of_memory`, `killed` (by a "
           "signal), `error`; a number that was not measured is an empty cell",
           choices=("ok", "out_of_memory", "killed", "error")),
    Column("error", "TLSXI", "text", "why it is not `ok`"),
    Column("epochs", "T", "count", "that were asked for", configuration=True),
    Column("steps_timed", "T", "count", "steps in the steady rate"),
    Column("steps_per_epoch", "T", "count", "full batches in the training set"),
    Column("data", "TLSXI", "text", "`real` or `synthetic`: random images, token ids or weights "
           "through the same pipeline at the same cost", choices=("real", "synthetic"),
           configuration=True),
    Column("exporter", "I", "text", "what made the ONNX file"),
    Column("model", "L", "text", "the file's name", words="{}"),
    Column("architecture", "L", "text", "such as `llama`"),
    Column("description", "l", "text", "what llama.cpp calls it, such as `llama 7B Q4_0`"),
    Column("parameters", "L", "count", "weights of the model"),
    Column("quantization", "L", "text", "such as `Q4_0`"),
    Column("file_size_gb", "L", "GB", "size of the file"),
    Column("depth", "l", "count", "tokens in the cache before (`--depths`)"),
    Column("parallel", "l", "count", "users at once (`--parallel`)"),
    Column("max_tokens", "L", "count", "an answer's, at most"),
    Column("n_ctx", "L", "count", "context for so many tokens"),
    Column("n_gpu_layers", "L", "count", "that were asked for; -1: all", -1, 1e4),
    Column("layers_on_gpu", "L", "count", "by llama.cpp's own report: a build without GPU support "
           "is filed under the processor"),
    Column("layers", "L", "count", "of the model"),
    Column("split_mode", "l", "text", "how several GPUs share the model"),
    Column("tensor_split", "l", "text", "each GPU's part"),
    Column("weights_on_gpu_gb", "l", "GB", "weights there, by llama.cpp's own figures"),
    Column("n_threads", "L", "count", "threads that llama.cpp computes with"),
    Column("flash_attn", "L", "text", "what was asked for", words="flash attention {}"),
    Column("flash_attn_used", "l", "text", "what llama.cpp chose"),
    Column("seed", "L", "count", "of every answer"),
    Column("temperature", "L", "ratio", "of sampling"),
    Column("questions_file", "l", "text", "of questions in place of the twenty"),
    Column("system_prompt", "l", "text", "what goes before every question"),
    Column("precision", "T", "text", "of the computation; `fp32` is true float32",
           choices=("fp32", "bf16", "fp16", "int8"), default="fp32", words="{}"),
    Column("compile", "T", "flag", "the model was compiled", default=False, words="compiled"),
    Column("channels_last", "T", "flag", "images in NHWC memory order", default=False),
    Column("thermal_protocol", "tl", "text", "`cold`: the machine was measured as it was; "
           "`sustained`: after `--soak`. A machine without a fan loses up to a third",
           default="cold", words="{}"),
    Column("soak_seconds", "tl", "s", "how long `--soak` took"),
    Column("device", "M", "text", "what computed, as the framework calls it", configuration=True),
    Column("num_devices", "m", "count", "that train together", default=1, words="{:g} devices"),
    Column("threads", "m", "count", "threads that the framework computes with"),
    Column("gpu_power_limit_watts", "m", "W", "what an NVIDIA card may draw"),
    Column("thermal_state", "m", "text", "heat before and after, of an NVIDIA card or a Mac"),
    Column("machine", "M", "text", "its name, as in the file's"),
    Column("chip", "M", "text", "the processor"),
    Column("cpu_cores", "M", "count", "that this process may use"),
    Column("gpu_cores", "M", "count", "of an Apple chip"),
    Column("memory_gb", "M", "GB", "of the device", 0.1, 1e5),
    Column("power", "M", "text", "`ac` or `battery`, with `_low_power` in low power mode"),
    Column("other_load_percent", "M", "%", "share of the processor cores that other programs, and "
           "the hypervisor, had while the clock ran"),
    Column("other_benchmark_running", "M", "flag", "another script of this collection was at work"),
    Column("disturbance", "m", "text", "what was unusual about the run: `suspended` (Ctrl-Z, sleep;"
           " those windows are left out), `waited` (too little processor time), `short of memory`, "
           "`still changing speed` (after ten minutes of soak), other processes on the card"),
    Column("environment", "m", "text", "variables of the libraries that compute, as they were set "
           "when the run began (`XLA_FLAGS=...`); without those that are not heeded, without "
           "personal data"),
    Column("os", "M", "text", "operating system"),
    Column("python", "M", "text", "its version"),
    Column("framework", "M", "text", "and its version", configuration=True),
    Column("project_version", "M", "text", "the experiment's version: rows that differ in "
           "its first two numbers do not measure the same thing", configuration=True),
    Column("started_at", "M", "time", "when the measurement began: ISO 8601, UTC"),
    Column("communication_percent", "R", "%", "share of a step, without loading, that averaging "
           "the gradients takes, measured with and without it", -1e4, 100),
    Column("gradient_gb", "R", "GB", "what is averaged"),
    Column("scaling_efficiency_percent", "C", "%", "rate over so many times that of one device"),
    Column("loader_workers", "", "count", "processes that load data (Food101)"),
    Column("weights", "", "text", "of DistilBERT: `pretrained` or `random`"),
    Column("transformers", "", "text", "its version (DistilBERT)"),
    Column("test_accuracy", "", "ratio", "on the test set (`--evaluate`)", 0, 1),
]
# fmt: on


def interval_of(column: Column) -> list[Column]:
    meaning = "half-width of its 95 % interval"
    name = f"{column.name}_ci95"
    return [Column(name, column.groups, column.unit, meaning)] if column.ci95 else []


EVERY = [each for column in TABLE for each in (column, *interval_of(column))]
COLUMN = {column.name: column for column in EVERY}  # two of one name differ in their meaning only


def columns_of(groups: str) -> tuple[str, ...]:
    """The columns that rows of these groups have, in the order of their files."""
    letters = {*groups.upper(), *groups.lower()}
    return tuple(column.name for column in EVERY if letters & set(column.groups))


def later_columns(groups: str) -> list[str]:
    """Those of them that files of before 0.2 may lack."""
    return [column.name for column in EVERY if set(groups.lower()) & set(column.groups)]


COLUMNS = columns_of("TM")  # of a training
MACHINE_COLUMNS = columns_of("M")
FLAGS = {column.name for column in EVERY if column.unit == "flag"}
TEXTS = {column.name for column in EVERY if column.unit in ("text", "time")}
DEFAULTS = {column.name: column.default for column in EVERY if column.default is not None}
CONFIGURATION = [c.name for c in EVERY if c.configuration or c.name in DEFAULTS]
