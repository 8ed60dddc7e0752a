//! What router and worker both need: errors, discovery, telemetry, deadlines, shutdown.
