"""Virtual fleets: how long a step takes, what requests are like, and what each number of replicas would have missed."""
