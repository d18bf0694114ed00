module desk/benchmarks/go_gateway

go 1.19
