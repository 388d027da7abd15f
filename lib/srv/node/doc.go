// Package node is the SSH server of a node.
package node
