# One static program on an empty image, for the architecture that the image is built for (amd64, arm64).

# Another registry's copy serves where Docker Hub does not: --build-arg RUST_IMAGE=registry.example.com/rust:1.95-slim-bookworm
ARG RUST_IMAGE=rust:1.95-slim-bookworm
FROM $RUST_IMAGE AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
# Cargo.toml names what is in there.
COPY benches benches
# A mirror of crates.io, such as sparse+https://rsproxy.cn/index/; empty for crates.io itself.
ARG CRATES_MIRROR=
RUN [ -z "$CRATES_MIRROR" ] || printf '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "%s"\n' "$CRATES_MIRROR" > "$CARGO_HOME/config.toml"
# What --version says: --build-arg COMMIT="$(git rev-parse --short=12 HEAD)".
ARG COMMIT=
# The caches stay with the builder, so that a later build compiles only what changed. With --target the flags reach the program
# only, not the build scripts and macros, which cannot be static.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    target="$(rustc -vV | sed -n 's/^host: //p')" \
    && WECOM_PROXY_COMMIT="$COMMIT" RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$target" \
    && mkdir -p /image \
    && mkdir -m 1777 /image/tmp \
    && cp "target/$target/release/wecom-proxy" /image/wecom-proxy

FROM scratch
# The program, and the /tmp in which it keeps large request bodies for another attempt.
COPY --from=build /image/ /
USER 65532:65532
ENV WECOM_PROXY_CONFIG=/etc/wecom-proxy/proxy.toml
# The proxy. server.listen must be "0.0.0.0:8080" here, for which it needs a client, or server.open = true.
EXPOSE 8080
# Asks the admin listener: the configuration needs [admin].
HEALTHCHECK --interval=30s --timeout=6s --start-period=5s CMD ["/wecom-proxy", "health"]
ENTRYPOINT ["/wecom-proxy"]
CMD ["serve"]
