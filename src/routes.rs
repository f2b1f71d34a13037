//! Every route, in the order of Bedrock's own list: match on the raw path, then decode each segment.
