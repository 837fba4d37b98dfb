# Reasoning-model serving, measured. `make` alone prints this help.
PROFILE ?= embedded
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell command -v $(p))))
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup reproduce plan report figures lab test bench doctor miniature lmdeploy quantize clean

help:  ## this help
	@echo "usage: make TARGET [PROFILE=embedded]      measured on 2 cores without a GPU"
	@sed -n 's/^\([a-z]*\):.*##[ ]*/  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

reproduce: setup  ## run and render every notebook but 11, which needs a GPU, into reports/  (30 min; if busy up to 5 ×)
	$(PY) -m asu reproduce --profile $(PROFILE)

test: setup  ## static, unit, fault and browser tests, the same notebooks on real vLLM  (8 min; if busy up to 6 ×)
	@$(PYTHON) lib/install.py chromium
	$(PY) -m ruff check lib tests
	$(PY) -m pytest -n 2 --dist loadfile

plan: setup  ## the runs of PROFILE: what is done, what is missing, how long it will take  (seconds)
	$(PY) -m asu plan --profile $(PROFILE)

report: setup  ## render the notebooks of PROFILE from complete runs  (about 1 min)
	$(PY) -m asu report --profile $(PROFILE)

figures: report  ## publish the figures of PROFILE to figures/ and the claims table to README.md  (about 1 min)
	$(PY) -c "from asu import report; report.publish('$(PROFILE)')"
	$(PY) -m asu.report

lab: setup  ## JupyterLab on notebooks/, with the kernel they run in
	$(PY) -m jupyterlab --notebook-dir=notebooks

bench: setup  ## the client's own error against a mock with known times  (about 1 min)
	$(PY) -m asu.bench

doctor: setup  ## what this machine can run and what to install for more  (seconds)
	$(PY) -m asu doctor

miniature: setup  ## train the miniature anew on one GPU  (under 10 min on an H200), then `python -m asu.mini.card`
	$(PY) -m asu.mini.train

lmdeploy: setup  ## add LMDeploy in .venv-lmdeploy, for NVIDIA GPUs  (about 5 min, 8 GB)
	$(PYTHON) lib/install.py lmdeploy

quantize: setup  ## a quantised checkpoint: MODEL=mini-4m-think SCHEME=w4a16|w8a8|fp8|awq|modelopt_fp8  (minutes for a miniature)
	@test -n "$(MODEL)" -a -n "$(SCHEME)" || { echo "give MODEL=… and SCHEME=…"; exit 2; }
	@$(PYTHON) lib/install.py llmcompressor
	$(PY) -m asu quantize $(MODEL) $(SCHEME)

setup:  ## the environment in .venv, from the lock for this machine  (about 1 min, 3.2 GB; nothing when up to date)
	@$(PYTHON) lib/install.py

clean:  ## remove runs/ and reports/; stay: .venv*, published records, models/ (quantize), engines/ (TensorRT-LLM)
	rm -rf runs reports
