# `make sft reward ppo` runs the pipeline, `make test` its tests, and `make help` lists the rest.
# Make gives the environment and the order; Python decides what is up to date, by hash, never by file times.

##   CONFIG   the recipe [configs/tiny/recipe.yaml]
##   RUN      the run's name: its folder is runs/RUN [the recipe's]
##   SEED     the seed of every random choice [the recipe's]
##   MODEL    the model to start from: a folder or a hub id [the recipe's]
##   LABELS   whose labels train: people (the recipe's own), constitution, or both [people]
##   PROJECT  the labeling project of `make label`: a folder or a database's URL [labels]
##   LABELER  who is at work in `make label` [your login name]
##   PORT     where `make serve` listens, on this machine alone [8000]
##   SET      more settings, as shell words: SET="ppo.kl.coefficient=0.1 run.device=cpu"
##   GPUS     processes on each node, one a GPU (or on the CPU where there is none); GPUs to plan for [1]
##   ZERO     DeepSpeed's ZeRO stage, 1 to 3: docs/cluster.md [none; 2 on several processes]
##   OFFLOAD=1  with ZERO=2 or 3: optimizer state (under 3 also weights) in the CPU's memory
##   NODES    machines, each with its own `make` [1]
##   NODE_RANK  which of them this is, from 0 [SLURM's]
##   MASTER   the address where they find each other: host:port of number 0
##   MEMORY   GiB of each of those devices [what this machine's device has]
##   TOKENS   the longest sequence that `make plan` takes for granted, where the recipe sets no length.max_tokens
##   CLEAN=1  throw away what the stage has already made, and start it again
##   ACCEPT_SCORER=1  resume PPO although the code of a scorer has been corrected since it began
##   BENCH    what the `make bench` targets are told: BENCH="ppo-real --rounds 1" [nothing]
##   SOAK     what `make soak` is told: SOAK="--kills 6 --each 2" [20 kills, 5 in each phase at least]
##   TESTS    what `make test` passes to pytest: TESTS="tests/unit -k config" [all tests]
##   JOBS     processes that `make test` spreads the files of tests over [one a core, 4 at most]
##   VENV     the virtual environment to make and use; VENV=none: use PYTHON as it is [.venv]
##   PYTHON   the Python that makes the environment, or that VENV=none uses [python3]

CONFIG = configs/tiny/recipe.yaml
RUN =
SEED =
MODEL =
LABELS = people
PROJECT = labels
LABELER = $(shell id -un)
PORT = 8000
SET =
GPUS =
ZERO =
OFFLOAD =
NODES =
NODE_RANK = $(SLURM_NODEID)
MASTER =
MEMORY =
TOKENS =
CLEAN =
ACCEPT_SCORER =
BENCH =
SOAK =
TESTS =
JOBS = auto
VENV ?= .venv
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install plan sft reward ppo chat demonstrations samples rankings label serve stories hh clean-run
.PHONY: constitution revisions preferences
.PHONY: check lint types test format soak bench bench-learning bench-gpu
# Goals run one after the other in the order given, also under -j: each needs what the one before published.
.NOTPARALLEL:

ifeq ($(filter-out none,$(VENV)),)
python = $(PYTHON)
else
python = $(VENV)/bin/python
install: $(VENV)/.triptych-installed
endif

# What else this make will do: the first stage looks at what the later ones need (rlhf/commands/ahead.py).
goals = $(MAKECMDGOALS)
export TRIPTYCH_GOALS = $(goals)

# Without a shell in between, SIGTERM to make reaches the stage, and make waits until it has saved.
stage = @exec $(python)

# Whatever is in a value, `quoted` is one word for the shell, and `yaml` a text in YAML (RUN=7 is a name).
quoted = '$(subst ','\'',$(1))'
yaml = "$(subst ",\",$(subst \,\\,$(1)))"

# Whose labels the stages after `make constitution` read; `both` are mixed as its settings say.
revised = 'sft.demonstrations=[{path: "{run}/revisions/demonstrations.jsonl"}]'
compared = 'reward.rankings=[{path: "{run}/preferences/$(1).jsonl"}]'
labels_people =
labels_constitution = $(revised) $(call compared,rankings)
labels_both = $(revised) $(call compared,mixed)
ifndef labels_$(LABELS)
ifneq ($(LABELS),people)
$(error LABELS is people, constitution or both, not $(LABELS))
endif
endif

overrides = $(labels_$(LABELS)) $(if $(RUN),$(call quoted,run.name=$(call yaml,$(RUN)))) \
            $(if $(SEED),$(call quoted,run.seed=$(SEED))) \
            $(if $(MODEL),model.scratch=null $(call quoted,model.path=$(call yaml,$(MODEL)))) \
            $(SET)
recipe = --config $(call quoted,$(CONFIG)) $(overrides)
clean = $(if $(filter-out 0,$(CLEAN)),--clean)

# One process without DeepSpeed is a plain Python; everything else goes through accelerate's launcher.
launched = $(filter-out 1,$(GPUS))$(filter-out 1,$(NODES))$(filter-out 0,$(ZERO) $(OFFLOAD))
launch = $(if $(strip $(launched)),rlhf.launch $(if $(GPUS),--gpus $(call quoted,$(GPUS))) \
         $(if $(ZERO),--zero $(call quoted,$(ZERO))) $(if $(filter-out 0,$(OFFLOAD)),--offload) \
         $(if $(NODES),--nodes $(call quoted,$(NODES))) $(if $(NODE_RANK),--node-rank $(call quoted,$(NODE_RANK))) \
         $(if $(MASTER),--master $(call quoted,$(MASTER))))

help: ## list targets and variables
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile
	@echo 'Variables [default]:'
	@awk '/^## / {print substr($$0, 4)}' Makefile

plan: install ## what each stage needs per device, and whether it fits, from the model's config alone
	$(python) -m plan $(recipe) $(if $(GPUS),--gpus $(call quoted,$(GPUS))) $(if $(ZERO),--zero $(call quoted,$(ZERO))) \
	  $(if $(MEMORY),--memory $(call quoted,$(MEMORY))) $(if $(TOKENS),--tokens $(call quoted,$(TOKENS)))

sft: install ## stage 1: fine-tune the model on demonstrations
	$(stage) -m $(launch) sft $(recipe) $(clean)

reward: install ## stage 2: train the reward model on rankings
	$(stage) -m $(launch) reward $(recipe) $(clean)

ppo: install ## stage 3: train the policy against the reward model
	$(stage) -m $(launch) ppo $(recipe) $(clean) $(if $(filter-out 0,$(ACCEPT_SCORER)),--accept-scorer)

chat: install ## talk to the policy that stage 3 published
	$(python) -m ppo.chat $(recipe)

demonstrations: install ## make the run's demonstrations from the base model's own continuations
	$(stage) -m labeling demonstrations $(recipe) $(clean)

samples: install ## sample completions from the SFT model, to be ranked
	$(stage) -m labeling samples $(recipe) $(clean)

rankings: install ## rank those samples with the recipe's scorer
	$(stage) -m labeling rankings $(recipe) $(clean)

constitution: install ## label by a written constitution: both of the following, as far as the recipe has them
	$(stage) -m labeling constitution $(recipe) $(clean)

revisions: install ## let a model criticize and revise responses, for `make sft LABELS=constitution`
	$(stage) -m labeling revisions $(recipe) $(clean)

preferences: install ## let a model compare completions, for `make reward LABELS=constitution`
	$(stage) -m labeling preferences $(recipe) $(clean)

label: install ## rank completions by hand: the labeler's screen (give PROJECT and LABELER)
	$(python) -m labeling rank --project $(call quoted,$(PROJECT)) --labeler $(call quoted,$(LABELER))

serve: install ## the same screen in browsers (give PROJECT; a token for each labeler: docs/labeling.md)
	$(python) -m labeling serve --project $(call quoted,$(PROJECT)) --port $(call quoted,$(PORT))

stories: CONFIG = configs/stories/recipe.yaml
stories: goals = demonstrations sft samples rankings reward ppo
stories: demonstrations sft samples rankings reward ppo ## the whole loop on story openings (give MODEL)

hh: CONFIG = configs/hh/recipe.yaml
hh: goals = sft reward ppo
hh: sft reward ppo ## the three stages on HH-RLHF transcripts (give MODEL, and the data by SET)

bench: install ## race PPO and reward training against TRL: time and memory
	$(python) -m benchmarks $(BENCH)

bench-learning: CONFIG = configs/stories/recipe.yaml
bench-learning: install ## race PPO against TRL on the stories task: who learns sooner (give MODEL)
	$(python) -m benchmarks.learning --config $(call quoted,$(CONFIG)) \
	  $(if $(MODEL),--model $(call quoted,$(MODEL))) $(SET) $(BENCH)

bench-gpu: install ## measure what only a CUDA device can answer: correctness, speed, memory
	$(python) -m benchmarks.gpu $(BENCH)

soak: install ## kill PPO 20 times, start it again, and compare with a run left alone (SOAK="--kills 6")
	$(python) -m tests.soak $(SOAK)

clean-run: ## delete the folder runs/RUN (give RUN)
	@case $(call quoted,$(RUN)) in \
	  '') echo 'clean-run: give the name of the run: make clean-run RUN=name' >&2; exit 2;; \
	  */* | .*) echo 'clean-run: RUN is a name, not a path' >&2; exit 2;; \
	esac
	@for config in $(call quoted,runs/$(RUN))/*/config.yaml; do \
	  test -f "$$config" || { echo $(call quoted,clean-run: runs/$(RUN) is not the folder of a run) >&2; exit 2; }; \
	done
	rm -r $(call quoted,runs/$(RUN))

check: lint types test ## all that CI runs

lint: install ## ruff: mistakes and formatting
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: install ## mypy, strict
	$(python) -m mypy

test: install ## run the tests
	$(python) -m pytest -n $(call quoted,$(JOBS)) --maxprocesses 4 --dist loadfile $(TESTS)

format: install ## fix formatting, and what ruff can fix by itself
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

install: ## make the virtual environment (the other targets do it when it is needed)

# The stamp comes last, so an interrupted installation is done again.
$(VENV)/.triptych-installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'install: Python 3.11 or later is needed, and PYTHON=$(PYTHON) is not.' >&2; \
	  echo '  Name one (make PYTHON=python3.11 ...), or use an environment of your own: VENV=none.' >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
