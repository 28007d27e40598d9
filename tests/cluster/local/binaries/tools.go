//go:build tools

// Package tools names the programs that are built as they are, so that go.mod keeps what they need.
package tools

import (
	_ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
	_ "go.etcd.io/etcd/server/v3"
	_ "sigs.k8s.io/metrics-server/cmd/metrics-server"
)
