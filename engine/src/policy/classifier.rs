//! The compiled form of the SPD: a decision tree for each direction and IP version.
//!
//! A selector is a box in five dimensions (local and remote address, protocol, and the two values behind them),
//! a packet is a point, and the answer is the first box in order that holds the point. An inner node cuts space
//! at one boundary of one box; a leaf lists, in order, the few boxes that touch its region, and asks
//! [`Selector::matches`] for each. So the tree only leaves out selectors that cannot match: what matches is said
//! in one place. (The scheme is known as HyperSplit: Qi et al., INFOCOM 2009.) A small SPD is one leaf: the
//! linear search itself.
//!
//! Boxes that straddle a cut go to both sides. That growth has a budget: the tree never holds more than
//! [`REFERENCES_PER_RULE`] references per selector, whatever an operator writes; regions that would need more
//! stay longer lists, and the largest are cut first.

use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::{Policy, address_bits};
use crate::sa::selector::{Direction, Selector, UpperSelector};
use crate::wire::ip::{Flow, Fragment, Upper};

/// Lists up to this long are not cut: comparing a few selectors costs no more than walking nodes.
const LEAF_RULES: usize = 4;

/// Bound of the tree's size, and with it of the time to build it.
const REFERENCES_PER_RULE: usize = 8;

/// Answers as the linear search does, faster.
pub struct Classifier {
    /// [outbound v4, outbound v6, inbound v4, inbound v6]
    trees: [Tree; 4],
}

impl Classifier {
    /// Compiles the selectors of `policies`, in order.
    pub fn compile(policies: &[Arc<Policy>]) -> Self {
        let tree = |direction: Direction, v4: bool| {
            let mut rules = Vec::new();
            for (index, policy) in policies.iter().enumerate().filter(|(_, p)| p.speaks_for(direction)) {
                let of_version = policy.selectors.iter().filter(|s| s.local.first.is_ipv4() == v4);
                rules.extend(of_version.map(|selector| Rule { selector: *selector, policy: index }));
            }
            Tree::build(rules, if v4 { u128::from(u32::MAX) } else { u128::MAX })
        };
        Self {
            trees: [
                tree(Direction::Outbound, true),
                tree(Direction::Outbound, false),
                tree(Direction::Inbound, true),
                tree(Direction::Inbound, false),
            ],
        }
    }

    /// Index of the first policy that means `flow`.
    pub fn classify(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> Option<usize> {
        let version = usize::from(flow.source.is_ipv6());
        let tree = match direction {
            Direction::Outbound => &self.trees[version],
            Direction::Inbound => &self.trees[2 + version],
        };
        tree.classify(direction, flow, fragment)
    }
}

/// One selector and the policy it belongs to.
struct Rule {
    selector: Selector,
    policy: usize,
}

/// Dimensions: local address, remote address, protocol, and the two values of [`Upper`].
const DIMENSIONS: usize = 5;

/// The values of [`Upper`] as coordinates: ports are themselves, ICMP types and codes lie behind them, and what
/// is not available (OPAQUE) behind those, so that only a selector for anything reaches it.
const ICMP: u128 = 1 << 16;
const OPAQUE: u128 = ICMP + 256;

type Point = [u128; DIMENSIONS];

fn point(direction: Direction, flow: &Flow, fragment: Fragment) -> Point {
    let (first, second) = match flow.upper {
        // RFC 4301 section 7.3: selectors with ports do not mean later fragments.
        _ if fragment == Fragment::Later => (OPAQUE, OPAQUE),
        Upper::Opaque => (OPAQUE, OPAQUE),
        Upper::Icmp { kind, code } => (ICMP + u128::from(kind), ICMP + u128::from(code)),
        Upper::Ports { source, destination } => match direction {
            Direction::Outbound => (u128::from(source), u128::from(destination)),
            Direction::Inbound => (u128::from(destination), u128::from(source)),
        },
    };
    let (local, remote) = match direction {
        Direction::Outbound => (flow.source, flow.destination),
        Direction::Inbound => (flow.destination, flow.source),
    };
    [address_bits(local), address_bits(remote), u128::from(flow.protocol), first, second]
}

/// An inclusive range in every dimension.
#[derive(Clone, Copy)]
struct Region([(u128, u128); DIMENSIONS]);

impl Region {
    fn everything(last_address: u128) -> Self {
        Self([(0, last_address), (0, last_address), (0, 255), (0, OPAQUE), (0, OPAQUE)])
    }

    fn of(selector: &Selector) -> Self {
        let addresses = |first: IpAddr, last: IpAddr| (address_bits(first), address_bits(last));
        let (first, second) = match selector.upper {
            UpperSelector::Ports { local, remote } if !selector.upper.is_any() => (
                (u128::from(local.first), u128::from(local.last)),
                (u128::from(remote.first), u128::from(remote.last)),
            ),
            UpperSelector::Icmp { kinds, codes } if !selector.upper.is_any() => (
                (ICMP + u128::from(kinds.0), ICMP + u128::from(kinds.1)),
                (ICMP + u128::from(codes.0), ICMP + u128::from(codes.1)),
            ),
            // Any, or written out as all ports or all types: it also means the packet that shows none.
            _ => ((0, OPAQUE), (0, OPAQUE)),
        };
        Self([
            addresses(selector.local.first, selector.local.last),
            addresses(selector.remote.first, selector.remote.last),
            selector.protocol.map_or((0, 255), |protocol| (u128::from(protocol), u128::from(protocol))),
            first,
            second,
        ])
    }

    fn contains(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(outer, inner)| outer.0 <= inner.0 && inner.1 <= outer.1)
    }

    /// The parts of this region below `boundary` in `dimension`, and from it on.
    fn cut(&self, dimension: usize, boundary: u128) -> (Self, Self) {
        let (mut below, mut from) = (*self, *self);
        below.0[dimension].1 = boundary - 1;
        from.0[dimension].0 = boundary;
        (below, from)
    }
}

enum Node {
    /// Coordinates below `boundary` go to node `below`, all others to node `from`.
    Cut { dimension: u8, boundary: u128, below: u32, from: u32 },
    /// Indexes into [`Tree::references`], in the order of the policies.
    Leaf(Range<u32>),
}

struct Tree {
    rules: Vec<Rule>,
    nodes: Vec<Node>,
    references: Vec<u32>,
}

/// A leaf on its way: the largest is cut first.
struct Pending {
    rules: Vec<u32>,
    node: u32,
    region: Region,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.rules.len(), self.node).cmp(&(other.rules.len(), other.node))
    }
}

impl Tree {
    fn build(rules: Vec<Rule>, last_address: u128) -> Self {
        let boxes: Vec<Region> = rules.iter().map(|rule| Region::of(&rule.selector)).collect();
        let budget = rules.len() * REFERENCES_PER_RULE;
        let mut tree = Self { rules, nodes: vec![Node::Leaf(0..0)], references: Vec::new() };

        let everything = Region::everything(last_address);
        let all = touching(0..boxes.len() as u32, &boxes, &everything);
        let mut held = all.len();
        let mut pending = BinaryHeap::from([Pending { rules: all, node: 0, region: everything }]);
        while let Some(leaf) = pending.pop() {
            let Some((dimension, boundary)) = best_cut(&leaf, &boxes) else {
                tree.finish(&leaf);
                continue;
            };
            let (region_below, region_from) = leaf.region.cut(dimension, boundary);
            let rules_below = touching(leaf.rules.iter().copied(), &boxes, &region_below);
            let rules_from = touching(leaf.rules.iter().copied(), &boxes, &region_from);
            let would_hold = held - leaf.rules.len() + rules_below.len() + rules_from.len();
            if would_hold > budget {
                tree.finish(&leaf);
                continue;
            }
            held = would_hold;
            let below = tree.nodes.len() as u32;
            let from = below + 1;
            tree.nodes.extend([Node::Leaf(0..0), Node::Leaf(0..0)]);
            tree.nodes[leaf.node as usize] = Node::Cut { dimension: dimension as u8, boundary, below, from };
            pending.push(Pending { rules: rules_below, node: below, region: region_below });
            pending.push(Pending { rules: rules_from, node: from, region: region_from });
        }
        tree
    }

    fn finish(&mut self, leaf: &Pending) {
        let start = self.references.len() as u32;
        self.references.extend_from_slice(&leaf.rules);
        self.nodes[leaf.node as usize] = Node::Leaf(start..self.references.len() as u32);
    }

    fn classify(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> Option<usize> {
        let references = match self.nodes[..] {
            [Node::Leaf(_)] => &self.references[..],
            _ => self.leaf(&point(direction, flow, fragment)),
        };
        references
            .iter()
            .map(|&reference| &self.rules[reference as usize])
            .find(|rule| rule.selector.matches(direction, flow, fragment))
            .map(|rule| rule.policy)
    }

    /// The list of the region that holds `point`.
    fn leaf(&self, point: &Point) -> &[u32] {
        let mut node = 0;
        loop {
            match &self.nodes[node] {
                Node::Cut { dimension, boundary, below, from } => {
                    let is_below = point[usize::from(*dimension)] < *boundary;
                    node = if is_below { *below } else { *from } as usize;
                }
                Node::Leaf(range) => return &self.references[range.start as usize..range.end as usize],
            }
        }
    }
}

/// The rules of `candidates` that touch `region`, up to and with the first that contains it: behind that one
/// nothing is ever reached.
fn touching(candidates: impl IntoIterator<Item = u32>, boxes: &[Region], region: &Region) -> Vec<u32> {
    let mut rules = Vec::new();
    for rule in candidates {
        let rule_box = &boxes[rule as usize];
        let touches = rule_box.0.iter().zip(&region.0).all(|(a, b)| a.0 <= b.1 && b.0 <= a.1);
        if touches {
            rules.push(rule);
        }
        if rule_box.contains(region) {
            break;
        }
    }
    rules
}

/// The dimension and boundary whose larger side holds the fewest rules: in each dimension the median of the
/// boundaries inside the region is tried. `None` for a list that is short, or that no cut shortens by a tenth
/// (which bounds the depth).
fn best_cut(leaf: &Pending, boxes: &[Region]) -> Option<(usize, u128)> {
    let count = leaf.rules.len();
    if count <= LEAF_RULES {
        return None;
    }
    let mut best = (count - count.div_ceil(10) + 1, usize::MAX);
    let mut cut = None;
    let mut boundaries = Vec::with_capacity(2 * count);
    for dimension in 0..DIMENSIONS {
        let (first, last) = leaf.region.0[dimension];
        let ranges = || leaf.rules.iter().map(|&rule| boxes[rule as usize].0[dimension]);
        boundaries.clear();
        for range in ranges() {
            // A boundary is the first coordinate of what lies behind it.
            boundaries.extend((range.0 > first).then_some(range.0));
            boundaries.extend((range.1 < last).then(|| range.1 + 1));
        }
        if boundaries.is_empty() {
            continue;
        }
        let middle = boundaries.len() / 2;
        let boundary = *boundaries.select_nth_unstable(middle).1;
        let below = ranges().filter(|range| range.0 < boundary).count();
        let from = ranges().filter(|range| range.1 >= boundary).count();
        let score = (below.max(from), below + from);
        if score < best {
            best = score;
            cut = Some((dimension, boundary));
        }
    }
    cut
}

#[cfg(test)]
impl Classifier {
    /// For each tree: selectors, references, and the longest list a packet may have to walk.
    pub(super) fn shape(&self) -> [(usize, usize, usize); 4] {
        self.trees.each_ref().map(|tree| {
            let lists = tree.nodes.iter().map(|node| match node {
                Node::Leaf(range) => range.len(),
                Node::Cut { .. } => 0,
            });
            (tree.rules.len(), tree.references.len(), lists.max().unwrap_or(0))
        })
    }
}
