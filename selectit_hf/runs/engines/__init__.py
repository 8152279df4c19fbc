"""Who rates which pending shard: the processes of one machine, a launcher's, or a cluster's."""
