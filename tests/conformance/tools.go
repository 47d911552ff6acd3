//go:build tools

// Package conformance pins the programs that `make conformance` holds the transports against.
package conformance

import (
	_ "github.com/fullstorydev/grpcurl/cmd/grpcurl"
	_ "github.com/summerwind/h2spec/cmd/h2spec"
	_ "google.golang.org/grpc/interop/client"
)
