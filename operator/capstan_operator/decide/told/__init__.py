"""What people are told of a decision: status, conditions and sentences, and whether they are worth a write."""
