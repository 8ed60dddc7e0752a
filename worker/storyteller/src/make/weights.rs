//! The parameters of a Llama by name, generic over their values: tensors, gradients or moments.

use crate::make::config::ModelConfig;

/// Parameters of one block. Matrices are `[out, in]`, norms are `[1, hidden]`.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // The names are those of the checkpoint format.
pub struct Block<T> {
    pub input_norm: T,
    pub q: T,
    pub k: T,
    pub v: T,
    pub o: T,
    pub post_norm: T,
    pub gate: T,
    pub up: T,
    pub down: T,
}

/// Parameters of a model. The output projection is the transposed embedding.
#[derive(Debug, Clone)]
pub struct Weights<T> {
    /// `[vocab, hidden]`
    pub embed: T,
    /// The blocks, in order.
    pub blocks: Vec<Block<T>>,
    /// `[1, hidden]`
    pub norm: T,
}

/// Name and shape of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Name in the checkpoint.
    pub name: String,
    /// Rows and columns. A norm has one row here and is a vector in the checkpoint.
    pub shape: [usize; 2],
}

impl Spec {
    fn new(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self { name: name.into(), shape: [rows, columns] }
    }

    /// Returns whether this is the gain of a normalisation: a vector that is initialised to one and
    /// not decayed.
    pub fn is_norm(&self) -> bool {
        self.name.ends_with("norm.weight")
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Returns whether the parameter has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shape in the checkpoint.
    pub fn stored_shape(&self) -> Vec<usize> {
        if self.is_norm() { vec![self.shape[1]] } else { self.shape.to_vec() }
    }
}

/// Returns the names and shapes of all parameters of a model with this `config`.
pub fn specs(config: &ModelConfig) -> Weights<Spec> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let block = |n: usize| {
        let spec = |name: &str, rows, columns| {
            Spec::new(format!("model.layers.{n}.{name}.weight"), rows, columns)
        };
        Block {
            input_norm: spec("input_layernorm", 1, hidden),
            q: spec("self_attn.q_proj", config.query_dim(), hidden),
            k: spec("self_attn.k_proj", config.kv_dim(), hidden),
            v: spec("self_attn.v_proj", config.kv_dim(), hidden),
            o: spec("self_attn.o_proj", hidden, config.query_dim()),
            post_norm: spec("post_attention_layernorm", 1, hidden),
            gate: spec("mlp.gate_proj", ffn, hidden),
            up: spec("mlp.up_proj", ffn, hidden),
            down: spec("mlp.down_proj", hidden, ffn),
        }
    };
    Weights {
        embed: Spec::new("model.embed_tokens.weight", config.vocab_size, hidden),
        blocks: (0..config.num_hidden_layers).map(block).collect(),
        norm: Spec::new("model.norm.weight", 1, hidden),
    }
}

/// Returns the number of parameters of a model with this `config`.
pub fn parameters(config: &ModelConfig) -> usize {
    specs(config).iter().map(Spec::len).sum()
}

impl<T> Block<T> {
    fn map<U>(self, f: &mut impl FnMut(T) -> U) -> Block<U> {
        Block {
            input_norm: f(self.input_norm),
            q: f(self.q),
            k: f(self.k),
            v: f(self.v),
            o: f(self.o),
            post_norm: f(self.post_norm),
            gate: f(self.gate),
            up: f(self.up),
            down: f(self.down),
        }
    }

    fn as_ref(&self) -> Block<&T> {
        Block {
            input_norm: &self.input_norm,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            o: &self.o,
            post_norm: &self.post_norm,
            gate: &self.gate,
            up: &self.up,
            down: &self.down,
        }
    }
}

impl<T> Weights<T> {
    /// Applies `f` to every parameter, in checkpoint order.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Weights<U> {
        Weights {
            embed: f(self.embed),
            blocks: self.blocks.into_iter().map(|block| block.map(&mut f)).collect(),
            norm: f(self.norm),
        }
    }

    /// Borrows every parameter.
    pub fn as_ref(&self) -> Weights<&T> {
        Weights {
            embed: &self.embed,
            blocks: self.blocks.iter().map(Block::as_ref).collect(),
            norm: &self.norm,
        }
    }

    /// Iterates over all parameters, in checkpoint order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut all = Vec::new();
        self.as_ref().map(|value| all.push(value));
        all.into_iter()
    }

    /// Pairs the parameters of two models of the same shape.
    pub fn zip<U>(self, other: Weights<U>) -> Weights<(T, U)> {
        let mut others = Vec::new();
        other.map(|value| others.push(value));
        let mut others = others.into_iter();
        self.map(|value| match others.next() {
            Some(other) => (value, other),
            None => unreachable!("both models have the same config"),
        })
    }
}
