"""The desk's wire contract. Each subpackage is one version: `from desk.v1 import orders_pb2`."""
