module desk/benchmarks/go_client

go 1.19
