"""Random weights as files, for engines without a dummy load: `python fill.py FOLDER SEED` beside its config.json.

Runs under the engine's interpreter, which has torch and transformers; knows nothing of the rest of this package.
"""

import shutil
import sys
import tempfile
from pathlib import Path

SHARD = "4GB"
MARK = "FILLED"  # written last


def main(folder: Path, seed: int) -> None:
    """Draw bf16 weights for the config in `folder`, on the GPU where there is one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".making-"))
    try:
        model.save_pretrained(scratch, max_shard_size=SHARD)
        for file in scratch.glob("*.safetensors*"):
            file.rename(folder / file.name)
        (folder / MARK).touch()
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
