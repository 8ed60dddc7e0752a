# Debian's etcd, the one that the tests of discovery run with.
FROM debian:bookworm-slim
# Unpinned: Debian removes a version from its archive when it publishes a fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends etcd-client etcd-server \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 700 -o 65532 -g 65532 /var/lib/etcd
USER 65532:65532
VOLUME ["/var/lib/etcd"]
EXPOSE 2379
HEALTHCHECK --interval=5s --timeout=3s --retries=3 CMD ["etcdctl", "endpoint", "health"]
CMD ["etcd"]
