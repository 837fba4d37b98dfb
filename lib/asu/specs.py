"""RunSpec: everything a run is asked to do, validated, with the digest that is its identity."""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asu.errors import AsuError

MOST_DRAFTED = 16  # tokens a step; as many counters are kept


class Spec(BaseModel):
    """Strict and frozen: a misspelt or ill-typed field is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Batch(Spec):
    """The paper's load: `size` requests at once, the next batch when the slowest of this one is done."""

    kind: Literal["batch"] = "batch"
    size: int = Field(gt=0)

    @property
    def label(self) -> str:
        return f"batch{self.size}"


class Closed(Spec):
    """A fixed number of requests in flight: one leaves, the next is sent."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(gt=0)

    @property
    def label(self) -> str:
        return f"closed{self.concurrency}"


class Gamma(Spec):
    """Open loop: gaps from a Gamma distribution of mean 1/rate [s] and coefficient of variation cv."""

    kind: Literal["gamma"] = "gamma"
    rate: float = Field(gt=0)
    cv: float = Field(ge=0)

    @property
    def label(self) -> str:
        return f"gamma{self.rate:g}cv{self.cv:g}"


class Trace(Spec):
    """Open loop: recorded arrival times from data/traces, divided by `speed`."""

    kind: Literal["trace"] = "trace"
    name: str = Field(min_length=1)
    speed: float = Field(default=1.0, gt=0)

    @property
    def label(self) -> str:
        return f"trace-{self.name}x{self.speed:g}"


Load = Annotated[Batch | Closed | Gamma | Trace, Field(discriminator="kind")]


class Speculation(Spec):
    """Speculative decoding: draft `tokens` tokens a step by prompt look-up or with the model named `draft`.

    acceptance: with random weights, whose drafts no target would accept, the mean tokens a step shall yield, from 1 to
    tokens + 1; accepted and rejected by lot.
    """

    method: Literal["ngram", "draft"]
    tokens: int = Field(gt=0, le=MOST_DRAFTED)
    draft: str | None = None
    acceptance: float | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        return f"{self.method}{self.tokens}" + (f"@{self.acceptance:g}" if self.acceptance is not None else "")

    @model_validator(mode="after")
    def _draft_named(self):
        if (self.method == "draft") != (self.draft is not None):
            raise ValueError("speculation: method 'draft' names a draft model, method 'ngram' does not")
        if self.acceptance is not None and (self.method == "ngram" or self.acceptance > self.tokens + 1):
            raise ValueError("speculation: acceptance goes with method 'draft' and is at most tokens + 1 "
                             "(prompt look-up finds nothing to draft in random text)")
        return self


class EngineOptions(Spec):
    """Neutral words for what an engine is asked to do; each engine maps them to its flags or refuses."""

    weights: Literal["bf16", "fp8", "w4a16", "w8a8", "awq", "bnb4", "modelopt_fp8"] = "bf16"
    kv_cache: Literal["bf16", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "int8", "int4"] = "bf16"
    kv_pool_tokens: int | None = Field(default=None, gt=0)  # size of the KV pool [tokens]; None: as the engine chooses
    memory_share: float | None = Field(default=None, gt=0, le=1)  # share of GPU memory the engine may take
    max_requests: int = Field(default=64, gt=0)  # most requests in one engine step
    context: int = Field(default=4096, gt=0)  # prompt + output [tokens]
    prefix_caching: bool = False
    speculation: Speculation | None = None
    scheduling: Literal["fcfs"] = "fcfs"  # the engine's order of waiting requests
    tensor_parallel: int = Field(default=1, gt=0)
    random_weights: bool = False  # real shapes, random numbers: for `replay`, where accuracy has no meaning

    @model_validator(mode="after")
    def _no_made_up_acceptance(self):
        if self.speculation and self.speculation.acceptance is not None and not self.random_weights:
            raise ValueError("speculation: a set acceptance makes nonsense of what a model says; it needs "
                             "random_weights")
        return self


class Sampling(Spec):
    """How tokens are drawn; `budget` is the most output tokens of a request."""

    temperature: float = Field(default=0.6, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    budget: int = Field(default=2048, gt=0)
    logprobs: bool = False  # record the log-probability of every drawn token


class Prefix(Spec):
    """`tokens` of words without meaning before each problem, and who shares them; `workload` makes them.

    unique: nobody. template: all requests, but only a short part of it. few_shot: all requests, all of it.
    samples: the repeats of one problem, sent one after the other. multi_turn: repeat r of R is turn r of a
    conversation, whose beginning is the turn before and which grows to `tokens` in the last.
    Every request then makes exactly the budget's number of tokens, and nothing is graded: no model was asked for this.
    """

    kind: Literal["unique", "template", "few_shot", "samples", "multi_turn"]
    tokens: int = Field(gt=0)

    @property
    def label(self) -> str:
        return f"{self.kind}{self.tokens}"


class RunSpec(Spec):
    """One measured run: `problems` first problems of a task, each `repeats` times, under one load on one server."""

    engine: str = "vllm"
    options: EngineOptions = EngineOptions()
    model: str
    task: str
    problems: int | None = Field(default=None, gt=0)  # None: all
    repeats: int = Field(default=1, gt=0)
    together: bool = False  # a problem's repeats are sent one after the other, not every problem before its next repeat
    load: Load = Closed(concurrency=32)
    sampling: Sampling = Sampling()
    seed: int = Field(default=0, ge=0)
    lengths: str | None = None  # replay: name of the recorded output lengths in data/lengths
    trial: int = Field(default=0, ge=0)  # which repetition of an otherwise equal run, seeds included
    prefix: Prefix | None = None  # what stands before each problem; None: nothing

    @model_validator(mode="after")
    def _budget_fits(self):
        if self.sampling.budget >= self.options.context:
            raise ValueError(f"budget {self.sampling.budget} leaves no room for a prompt in a context of "
                             f"{self.options.context} tokens")
        return self

    @model_validator(mode="after")
    def _prefix_fits(self):
        if self.prefix is None:
            return self
        if self.prefix.kind in ("samples", "multi_turn") and self.repeats < 2:
            raise ValueError(f"prefix {self.prefix.kind} is shared by a problem's repeats: set repeats to 2 or more")
        if self.prefix.tokens + self.sampling.budget >= self.options.context:
            raise ValueError(f"prefix of {self.prefix.tokens} and budget {self.sampling.budget} leave no room for a "
                             f"problem in a context of {self.options.context} tokens")
        return self

    @property
    def name(self) -> str:
        """Readable, for folder names and progress lines; the digest is what identifies."""
        pool = f"-kv{self.options.kv_pool_tokens}" if self.options.kv_pool_tokens else ""
        prefix = f"-{self.prefix.label}" if self.prefix else ""
        return f"{self.engine}-{self.model}-{self.task}-{self.load.label}-b{self.sampling.budget}{pool}{prefix}"

    @property
    def server_key(self) -> str:
        """What a server is started with: runs can share one only where it is the same (`Study.groups`)."""
        return canonical({"engine": self.engine, "model": self.model, "options": self.options.model_dump(mode="json")})

    def request_seed(self, problem_id: str, repeat: int) -> int:
        """31-bit sampling seed of one request; the same in every run that shares `seed`, whatever else differs."""
        text = f"{self.seed}/{problem_id}/{repeat}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def canonical(value) -> str:
    """JSON with one spelling per value, for digests and comparisons."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(spec: RunSpec, inputs: dict) -> str:
    """SHA-256 over the spec and over `inputs`: all else that can change a number (versions, weights, machine).

    Fields at their default are left out, so that a new field, whose default means "as before", leaves every recorded
    run its name. A default must therefore never change its meaning; the load is always spelt out.
    """
    asked = spec.model_dump(mode="json", exclude_defaults=True) | {"load": spec.load.model_dump(mode="json")}
    return hashlib.sha256(canonical({"spec": asked, "inputs": inputs}).encode()).hexdigest()


def parse(data: dict, where: str) -> RunSpec:
    """RunSpec from plain data, or one AsuError naming each offending field of `where`."""
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise AsuError(
            f"{where}: " + "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'run'}: {e['msg']}" for e in error.errors()),
            "correct the named fields; lib/asu/specs.py lists every field with its meaning and unit") from None
