# canvasd on the CPU: a small image that runs as an ordinary user.
#
#   docker build -t canvasd .
#   docker run --rm -p 127.0.0.1:8000:8000 -e CANVASD_API_KEY=change-me canvasd
#
# A real checkpoint is mounted, not copied: -v /models:/models:ro -e CANVASD_MODEL=/models/diffusiongemma-26B-A4B-it

FROM rust:1.95-slim-bookworm AS build
WORKDIR /source
COPY . .
# The caches keep downloads and compiled dependencies between builds; the program is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --bin canvasd \
    && install -D target/release/canvasd /out/canvasd

FROM debian:bookworm-slim
COPY --from=build /out/canvasd /usr/local/bin/canvasd
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/canvasd/
# A number, so that Kubernetes' runAsNonRoot can check it; no such user need exist.
USER 65532:65532
# Inside a container "this machine only" would reach nobody. canvasd refuses to start without CANVASD_API_KEY then,
# unless CANVASD_ALLOW_UNAUTHENTICATED=true says that it is meant.
ENV CANVASD_HOST=0.0.0.0 CANVASD_PORT=8000
EXPOSE 8000
# SIGTERM drains: running answers may end within CANVASD_GRACE_SECONDS (30), new requests are refused.
# Give it that long and a pass more before it is killed: docker stop --time, or terminationGracePeriodSeconds.
STOPSIGNAL SIGTERM
# Healthy as soon as the process lives; while a model is downloaded or loaded, which may take long, only GET /ready is red.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["canvasd", "health"]
ENTRYPOINT ["canvasd"]
CMD ["serve"]
