"""A Kubernetes cluster on this machine, made from Go modules and Debian's packages where no other one is at hand."""
