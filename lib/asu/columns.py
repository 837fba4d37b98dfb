"""Every column of the frames: unit and meaning, for the report's page and for the test that no column lacks one."""

from asu.specs import MOST_DRAFTED

LABELS = {
    "run": ("", "first characters of the run's digest"),
    "engine": ("", "serving engine"),
    "model": ("", "model, as in the catalogue"),
    "pair": ("", "joins a reasoning model with the plain one it is compared with"),
    "size": ("", "number of parameters, as printed"),
    "role": ("", "RLLM thinks before it answers, LLM answers at once"),
    "task": ("", "problem set"),
    "load": ("", "how requests arrive: batch (barrier), closed (fixed number in flight), gamma, trace"),
    "budget": ("tok", "most output tokens of a request"),
    "kv_pool_tokens": ("tok", "size of the KV pool that was asked for; empty: the engine's own choice"),
    "kv_pool_actual": ("tok", "size of the KV pool the engine made"),
    "weights": ("", "number format of the weights"),
    "kv_cache": ("", "number format of the KV cache"),
    "prefix_caching": ("", "whether KV of equal prompt beginnings is reused"),
    "speculation": ("", "speculative decoding: method and tokens drafted, or none"),
    "max_requests": ("", "most requests in one engine step"),
    "prefix": ("", "what stands before each problem: none, or who shares it (unique: nobody) and its length in tokens"),
    "trial": ("", "which repetition of an otherwise equal run, seeds included"),
    "replay": ("", "whether outputs end at recorded lengths, and what writes them: real weights or random weights; "
                   "none: the model ends them"),
}

REQUESTS = {
    "request_id": ("", "problem and repeat, as problem#repeat"),
    "problem_id": ("", "problem"),
    "task": LABELS["task"],
    "level": ("", "the set's own level of the problem"),
    "difficulty": ("", "the set's own number for how hard the problem is, e.g. operations"),
    "repeat": ("", "which time the problem was asked, from 0"),
    "batch": ("", "which barrier batch the request belonged to, −1 without a barrier"),
    "session": ("", "0, and one more after each resume of an interrupted run"),
    "seed": ("", "sampling seed of the request"),
    "max_tokens": ("tok", "most output tokens asked for"),
    "due_s": ("s", "when the load said the request should go"),
    "sent_s": ("s", "when it was sent"),
    "first_s": ("s", "first token of any kind"),
    "visible_s": ("s", "first token after thinking; empty: never left thinking"),
    "last_s": ("s", "last token"),
    "end_s": ("s", "stream closed"),
    "prompt_tokens": ("tok", "prompt tokens, by the engine's count"),
    "output_tokens": ("tok", "output tokens, by the engine's count"),
    "thinking_tokens": ("tok", "output tokens before the answer"),
    "answer_tokens": ("tok", "output tokens of the answer"),
    "event_tokens": ("tok", "tokens summed over the stream's events; equals output tokens unless some were lost"),
    "finish_reason": ("", "stop: ended by itself, length: cut off by the budget"),
    "error": ("", "why the request failed; empty: it did not"),
    "outcome": ("", "correct, wrong, cut off, unparsed or failed; empty: not graded"),
    "thinking_text": ("", "what was thought"),
    "answer_text": ("", "what was answered"),
    "extracted": ("", "the answer found in the text"),
    "expected": ("", "the right answer"),
    "server_ttft_s": ("s", "time to first token by the server's own clock"),
    "server_queue_s": ("s", "time in the server's queue by its own clock"),
}

DERIVED = {
    "finished": ("", "no error"),
    "lag_s": ("s", "sent − due: the client's own lateness"),
    "ttft_s": ("s", "first − due"),
    "ttfvt_s": ("s", "visible − due; empty: never visible"),
    "ttfvt_censored": ("", "whether no visible token came"),
    "ttfvt_observed_s": ("s", "(visible, else end) − due, the time of survivor curves"),
    "e2e_s": ("s", "last − due"),
    "service_s": ("s", "last − sent"),
    "tbt_s": ("s", "(last − first) / (output tokens − 1)"),
    "tbt_thinking_s": ("s", "the same within the thinking phase, over its own tokens"),
    "tbt_answer_s": ("s", "the same within the answer phase, over its own tokens"),
    "hit": ("", "1 correct, 0 otherwise; empty for failed and for ungraded requests"),
}

EVENTS = {
    "request_id": REQUESTS["request_id"],
    "session": REQUESTS["session"],
    "t_s": ("s", "when the stream's event was read"),
    "thinking_tokens": ("tok", "thinking tokens first seen in the event"),
    "answer_tokens": ("tok", "answer tokens first seen in the event"),
    "logprob": ("nat", "log-probability of the event's tokens, summed, as the engine tells it; empty: not asked for"),
}

ENGINE = {
    "session": REQUESTS["session"],
    "t_s": ("s", "when the engine's answer came"),
    "kv_use": ("share of pool", "KV cache in use"),
    "running": ("requests", "requests being computed"),
    "waiting": ("requests", "requests waiting for room"),
    "preemptions": ("", "requests pushed out for want of KV room, cumulative"),
    "prefix_queries": ("tok", "prompt tokens looked up in the prefix cache, cumulative"),
    "prefix_hits": ("tok", "prompt tokens found there, cumulative"),
    "spec_drafted": ("tok", "tokens drafted by speculation, cumulative"),
    "spec_accepted": ("tok", "drafted tokens kept, cumulative"),
    "spec_drafts": ("", "drafts made, one per request and step, cumulative; only where the engine speculated"),
    **{f"spec_accepted_{i}": ("tok", f"drafted tokens kept at position {i} of a draft, cumulative; likewise")
       for i in range(MOST_DRAFTED)},
}

HOST = {
    "session": REQUESTS["session"],
    "t_s": ("s", "when the host was read"),
    "cpu_share": ("share", "processor time of the engine's processes, of all cores"),
    "rss_bytes": ("B", "memory of the engine's processes"),
    "gpu_util": ("share", "time a kernel ran on the GPU"),
    "gpu_memory_bytes": ("B", "GPU memory in use"),
    "gpu_power_w": ("W", "GPU power"),
    "gpu_energy_j": ("J", "GPU energy counter"),
}

# What a monitor reads of an engine that speculates only; 17 empty columns would outweigh the rest of a record.
SPECULATION = ("spec_drafts", *(f"spec_accepted_{i}" for i in range(MOST_DRAFTED)))
ENGINE_GAUGES, HOST_GAUGES = (tuple(name for name in frame if name not in ("session", "t_s", *SPECULATION))
                              for frame in (ENGINE, HOST))

FRAMES = {
    "Labels of every frame": LABELS, "requests": REQUESTS, "requests, derived": DERIVED, "events": EVENTS,
    "engine": ENGINE, "host": HOST,
}
