from desk.v1 import admin_pb2 as _admin_pb2
from desk.v1 import books_pb2 as _books_pb2
from desk.v1 import market_pb2 as _market_pb2
from desk.v1 import orders_pb2 as _orders_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
