# `make` makes the report, `make test` checks it; both install what they need into .venv first.
# PYTHON chooses the interpreter (3.10 to 3.13): make PYTHON=python3.12

.DEFAULT_GOAL := report
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: report page test test-long bench architectures archetypes docs clean FORCE

OUTPUT := output
CODE := $(wildcard *.py explain/*/*.py explain/*/*.j2)
# what the data is; process_data.py leaves the file as it was where nothing changed
DATA := $(OUTPUT)/process_data/rows.jsonl

# With PYTHON given, the environment is made anew unless it was made with that interpreter.
ifdef PYTHON
INSTALLED := .venv/installed-$(notdir $(PYTHON))
else
PYTHON := python3
INSTALLED := .venv/installed
endif
RUN := .venv/bin/python

report: $(OUTPUT)/made
	@echo; echo "The report, in $(OUTPUT)/:"
	@find $(OUTPUT) -type f \( -name '*.png' -o -name '*.csv' -o -name metrics.json \) | LC_ALL=C sort
	@echo $(OUTPUT)/report.html

# the report as one file to be mailed, with the figures inside: output/report-single.html
page: $(OUTPUT)/made
	$(RUN) -m explain.report.page $(OUTPUT)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}: take 3.10 to 3.13, as in make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch .venv/installed $@

.venv/installed-dev: $(INSTALLED) requirements-dev.txt
	$(RUN) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# The user's own dataset where there is one, else the sample from the installed packages.
$(DATA): $(CODE) $(INSTALLED) FORCE
	$(RUN) process_data.py $(if $(wildcard dataset/DL_data),,--sample)

# An exercise whose rows are there only draws its figures anew.
$(OUTPUT)/made: $(CODE) $(INSTALLED) $(DATA)
	$(RUN) report.py
	@touch $@

test: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -q -n 2 --dist worksteal -m "not long"

test-long: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -q -n 2 --dist worksteal

.venv/installed-bench: .venv/installed-dev benchmarks/requirements.txt
	$(RUN) -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

# beside captum and other peers, written to docs/benchmarks.md and .json: 40 minutes on a machine with nothing else to do
bench: .venv/installed-bench $(DATA)
	$(RUN) benchmarks/bench.py

# every classification architecture of torchvision, written to docs/architectures.md: 20 minutes
architectures: .venv/installed-dev
	PYTHONPATH=. $(RUN) tests/architectures.py --all

# how far archetypes of the dataset's classes are recognised, over three seeds (docs/archetypes.md): a minute a class
# make archetypes JUDGES="--judge efficientnet_lite2 --judge squeezenet1_0=FILE" asks others too
JUDGES :=
archetypes: $(DATA)
	for seed in 0 1 2; do $(RUN) 2c_class_visualization.py --classes $$(ls dataset/DL_data_p) \
		--seed $$seed --output $(OUTPUT)/archetypes/$$seed $(JUDGES) || exit; done
	$(RUN) benchmarks/archetypes.py $(OUTPUT)/archetypes/*

# the pictures of the README: archetypes, and a photo in the public domain
PICTURES := $(OUTPUT)/docs
HOPPER = $$($(RUN) -c 'import matplotlib; print(matplotlib.get_data_path())')/sample_data/grace_hopper.jpg
docs: $(INSTALLED)
	$(RUN) 2c_class_visualization.py --classes 22 24 55 76 129 251 289 546 607 780 943 949 --dataset none --output $(PICTURES)
	$(RUN) 2f_guided_saliency.py $(HOPPER) --classes "military uniform" --output $(PICTURES)
	$(RUN) -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2], quality=90)' \
		$(PICTURES)/2c_class_visualization/archetypes.png docs/archetypes.jpg
	cp $(PICTURES)/2f_guided_saliency/guided_saliency.png docs/guided_saliency.png

clean:
	rm -rf $(OUTPUT) dataset/DL_data_p .pytest_cache .ruff_cache
