//! Every kernel, for the shapes of TinyLlama-1.1B.

use std::sync::Arc;

use cubecl::prelude::*;
use half::f16;

use super::{Target, buffer};
use crate::cube::{
    attention::{self, AttentionHeads, attend_split, merge_splits},
    draw::{self, draw_parts, merge_draws},
    embed::{embed_f32, embed_int8},
    float::{Epilogue, linear_f32},
    int8::{
        Int8Epilogue,
        dp4a::{linear_dp4a, swiglu_dp4a},
        mma::{Shape, linear_mma, swiglu_mma},
    },
    pack::pack_rows,
    project::{self, Heads, rotate_and_append_kernel},
    rows::{self, Steps, prepare_rows, quantize_rows},
};

/// Builds a kernel from the arguments of `launch_unchecked`, and stores its source.
macro_rules! add {
    ($target:ident, $name:expr, $kernel:ident $(::<$e:ty>)?, $units:expr, $($arg:expr),+ $(,)?) => {
        let kernel = $kernel::create_dummy_kernel $(::<$e>)? (
            Arc::clone(&$target.properties),
            Arc::clone(&$target.target),
            CubeCount::Static(1, 1, 1),
            $units,
            $($arg),+
        );
        $target.add($name, &kernel);
    };
}

impl Target {
    pub(super) fn products(&mut self) {
        let dim = CubeDim::new_2d(32, 4);
        let (t, n, words) = (1, 2560, 128);
        let epilogue = Int8Epilogue { bias: false, residual: true };
        for rows in [1, 2, 4, 8] {
            add!(
                self,
                format!("linear_dp4a_{rows}"),
                linear_dp4a,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                t,
                n,
                words,
                rows,
                epilogue,
            );
            add!(
                self,
                format!("swiglu_dp4a_{rows}"),
                swiglu_dp4a,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                t,
                n,
                words,
                rows,
                (false, false),
            );
            add!(
                self,
                format!("linear_f32_{rows}"),
                linear_f32,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                t,
                n,
                2048,
                rows,
                false,
                Epilogue::Residual,
            );
        }
        for t in [16, 32, 512] {
            let shape = Shape::for_linear(t);
            add!(
                self,
                format!("linear_mma_{}x{}", shape.m, shape.n),
                linear_mma,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                t as u32,
                n,
                words,
                shape,
                epilogue,
            );
            let shape = Shape::for_two(t);
            add!(
                self,
                format!("swiglu_mma_{}x{}", shape.m, shape.n),
                swiglu_mma,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                t as u32,
                n,
                words,
                shape,
                (false, false),
            );
        }
    }

    pub(super) fn rows(&mut self) {
        let dim = CubeDim::new_1d(rows::UNITS as u32);
        for (name, steps) in [
            ("plain", Steps { gather: false, norm: false }),
            ("normed", Steps { gather: false, norm: true }),
            ("gathered", Steps { gather: true, norm: true }),
        ] {
            add!(
                self,
                format!("quantize_rows_{name}"),
                quantize_rows,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                2048,
                512,
                1e-5,
                rows::UNITS,
                steps,
            );
            if steps.norm {
                add!(
                    self,
                    format!("prepare_rows_{name}"),
                    prepare_rows,
                    dim,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    2048,
                    1e-5,
                    rows::UNITS,
                    steps,
                );
            }
        }
    }

    pub(super) fn attention(&mut self) {
        let dim = CubeDim::new_1d(attention::SPLIT as u32);
        for windowed in [false, true] {
            let heads = AttentionHeads { group: 8, d: 64, windowed };
            let name = if windowed { "_windowed" } else { "" };
            add!(
                self,
                format!("attend_split_f16{name}"),
                attend_split::<f16>,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                32,
                0,
                heads,
            );
            add!(
                self,
                format!("attend_split_f32{name}"),
                attend_split::<f32>,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                32,
                0,
                heads,
            );
            add!(
                self,
                format!("merge_splits{name}"),
                merge_splits,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                32,
                4,
                0,
                heads,
            );
        }
    }

    pub(super) fn others(&mut self) {
        let dim = CubeDim::new_1d(256);
        add!(self, "embed_f32", embed_f32, dim, buffer(), buffer(), buffer(), 2048);
        add!(
            self,
            "embed_int8",
            embed_int8,
            dim,
            buffer(),
            buffer(),
            buffer(),
            buffer(),
            2048,
            512
        );
        add!(
            self,
            "draw_parts",
            draw_parts,
            dim,
            buffer(),
            buffer(),
            buffer(),
            32_000,
            draw::UNITS
        );
        add!(self, "merge_draws", merge_draws, dim, buffer(), buffer(), buffer(), 8, 16);
        add!(self, "pack_rows", pack_rows, dim, buffer(), buffer(), 2048, 2048, 512);
        let dim = CubeDim::new_1d(project::UNITS as u32);
        for normed in [false, true] {
            let heads = Heads { h: 32, g: 4, d: 64, normed };
            let name = if normed { "_normed" } else { "" };
            add!(
                self,
                format!("rotate_and_append_f16{name}"),
                rotate_and_append_kernel::<f16>,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1e-5,
                project::UNITS,
                heads,
            );
            add!(
                self,
                format!("rotate_and_append_f32{name}"),
                rotate_and_append_kernel::<f32>,
                dim,
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                1e-5,
                project::UNITS,
                heads,
            );
        }
    }
}
