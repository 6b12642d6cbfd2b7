"""What the server and its workers tell each other, and how a server is set up. Nothing here needs torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elit.imprint import Imprint
from elit.serving.policy import Policy

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    model, codec, dtype: as `elit sample` takes them; the model may be a run of `elit finetune` too. prompts: a folder of
    embeddings for such a model, instead of its own. encoder: what makes embeddings of other texts. devices: one worker each.
    min_budget: no request is lowered below it. deadline_ms: of requests that name none; None: three times what they take
    alone. max_...: of one request. queue: requests that wait on a device. rows: of one call of the model. policy: "fifo"
    serves in order of arrival with fixed budgets. trace: file that every decision is appended to. keys: API keys, of which
    one must be given, if there are any. page: whether the page is served. read_s: seconds that a body may take. drain_s:
    seconds that requests under way are given when the server is to end. repeats: how often each cost is measured at the
    start.
    """

    model: str | None = None
    codec: str | None = None
    prompts: str | None = None
    encoder: str | None = None
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    devices: tuple[str, ...] = ("cpu",)
    min_budget: float = 1 / 16
    deadline_ms: float | None = None
    max_n: int = 16
    max_steps: int = 250
    max_body: int = 64 * 1024
    queue: int = 64
    rows: int = 16
    policy: Policy = "deadline"
    trace: Path | None = None
    keys: tuple[str, ...] = ()
    page: bool = False
    read_s: float = 10.0
    drain_s: float = 30.0
    repeats: int = 3


@dataclass(frozen=True)
class Wish:
    """A request, as a worker is told of it: what its body said, and who asks since when (milliseconds).

    alone, attention: as `engine.Order` has them. previews: how many times its first image so far is told, at most.
    """

    id: int
    client: str
    received: float
    prompt: str
    n: int
    size: str
    seed: int
    sampler: str
    steps: int | None
    budget: float | None
    quality: str
    deadline_ms: float | None
    guidance_scale: float | None
    guidance_interval: tuple[float, float]
    guidance_budget: float | None
    autoguidance: bool
    alone: bool
    attention: bool
    previews: int


@dataclass(frozen=True)
class Cancel:
    """The one who asked has gone."""

    id: int


@dataclass(frozen=True)
class Facts:
    """What a worker knows of its model once it is loaded: names, in order of their numbers, or prompts that it knows, and
    names of each factor of a label, where labels have several; sides of its pictures in pixels; levels, and GFLOPs of one
    forward of one image at each; what the model's card says is best; where it runs; whether it is told texts, and no labels;
    and whether it tells Read's attention.
    """

    label_names: tuple[str, ...]
    label_factors: tuple[tuple[str, ...], ...]
    classes: int
    width: int
    height: int
    latents: int
    levels: tuple[int, ...]
    gflops: tuple[float, ...]
    milliseconds: tuple[float, ...]
    steps: int
    guidance_scale: float
    device: str
    texts: bool = False
    attention: bool = True


@dataclass(frozen=True)
class Broken:
    """The worker cannot begin, and why."""

    why: str


@dataclass(frozen=True)
class Refused:
    """A request is not served: an HTTP status, a sentence, and after how many milliseconds to ask again."""

    id: int
    status: int
    why: str
    retry_ms: float | None = None


@dataclass(frozen=True)
class Stepped:
    """A request has made so many steps of so many, and its first image so far is this, (1, H, W, 3)."""

    id: int
    step: int
    steps: int
    pixels: Pixels


@dataclass(frozen=True)
class Done:
    """The images (n, H, W, 3) of a request, and what they took.

    imprint: of the first image; only the index differs in the others. budgets: granted at every step. gflops: of all
    images, and full_gflops what they would have been at the full budget. queue_ms: until its first step; drawing_ms: from
    then on; compute_ms: of the calls that it took part in; full_ms: what the full budget is predicted to take, alone.
    attention: (n, rows, columns), Read's attention to every token as a share of the highest, where it was asked for.
    """

    id: int
    pixels: Pixels
    imprint: Imprint
    budgets: tuple[float, ...]
    gflops: float
    full_gflops: float
    queue_ms: float
    drawing_ms: float
    compute_ms: float
    full_ms: float
    deadline_ms: float
    deadline_met: bool
    attention: list[list[list[float]]] | None = None


@dataclass(frozen=True)
class State:
    """How a worker is, after a step: requests that wait and run, the rows of its calls, and what its costs came to.

    budgets: granted to each request in this step. decision_ms: what the controller took.
    """

    waiting: int = 0
    running: int = 0
    rows: int = 0
    scale: float = 1.0
    out_of_memory: int = 0
    decision_ms: float = 0.0
    budgets: tuple[float, ...] = field(default=())


ToWorker = Wish | Cancel | None  # None: end; a worker may send several of its own as one tuple, which wakes the server once
FromWorker = Facts | Broken | Refused | Stepped | Done | State
