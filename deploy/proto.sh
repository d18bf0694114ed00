#!/usr/bin/env bash
# Regenerates the Python code beside proto/desk/v1/*.proto. With --check it changes nothing and fails where the
# committed code is not what the .proto files give.
set -euo pipefail
cd "$(dirname "$0")/.."

# generate FOLDER: writes FOLDER/desk/v1/*_pb2.py, *_pb2.pyi and service_pb2_grpc.py.
generate() {
    (cd proto && "$OLDPWD/.venv/bin/python" -m grpc_tools.protoc --proto_path=. \
        --python_out="$1" --pyi_out="$1" desk/v1/*.proto &&
        "$OLDPWD/.venv/bin/python" -m grpc_tools.protoc --proto_path=. --grpc_python_out="$1" desk/v1/service.proto)
}

if [ "${1:-}" != --check ]; then
    generate "$PWD/proto"
    echo "proto: regenerated $(find proto -name '*_pb2*.py*' ! -path '*/__pycache__/*' | wc -l) files"
    exit
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
drift=0
while read -r file; do
    diff -u "proto/$file" "$fresh/$file" || drift=1
done < <({ cd "$fresh" && find desk -type f; cd "$OLDPWD/proto" && find desk -name '*_pb2*.py*' ! -path '*/__pycache__/*'; } | sort -u)
if [ "$drift" = 1 ]; then
    echo "proto: the committed code differs from what the .proto files give. Run: make proto, and commit it." >&2
    exit 1
fi
echo "proto: the committed code is what the .proto files give"
