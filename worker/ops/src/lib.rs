//! The operations a decoder is made of, as a burn backend extension.
