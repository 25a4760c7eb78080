//! The pool of KV blocks and the prefix cache over it.
//!
//! A block is in use (one or more sequences refer to it) or free. Free blocks stand in a doubly
//! linked list in the order in which they will be taken; a free block may still hold a cached prefix
//! until it is taken. The cache is a trie: a full block is found by the block before it and its own
//! tokens, compared in full, so that equal hashes of different prompts can never be mixed up.

use std::collections::HashMap;

use ahash::RandomState;

/// What stands before a cached block: the salt of its chain, or the serial number of the block
/// before it. Serial numbers are never used twice, so a link to an evicted block leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// The block is the first one of its prompt.
    Start {
        /// Chains with different salts share nothing.
        salt: u64,
    },
    /// The block follows another.
    After(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    prefix: Prefix,
    tokens: Box<[u32]>,
}

/// No neighbour in the free list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Block {
    references: u32,
    /// Set while the block is found through the cache.
    cached: Option<Key>,
    previous: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Cached {
    block: u32,
    serial: u64,
}

/// All KV blocks of an executor.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    block_size: usize,
    first_free: u32,
    last_free: u32,
    free: usize,
    cache: HashMap<Key, Cached, RandomState>,
    next_serial: u64,
}

impl BlockPool {
    /// `num_blocks` free blocks of `block_size` tokens.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        let mut pool = Self {
            blocks: Vec::with_capacity(num_blocks),
            block_size,
            first_free: NONE,
            last_free: NONE,
            free: 0,
            cache: HashMap::default(),
            next_serial: 0,
        };
        for block in 0..num_blocks as u32 {
            pool.blocks.push(Block {
                references: 0,
                cached: None,
                previous: NONE,
                next: NONE,
            });
            pool.push_free_last(block);
        }
        pool
    }

    /// Tokens a block holds.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the pool.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody refers to, cached ones included.
    pub fn free(&self) -> usize {
        self.free
    }

    /// The longest run of cached blocks that `tokens` begin with, and what the next block would
    /// follow. At least one token is left over: something must be computed to sample from.
    pub fn lookup(&self, salt: u64, tokens: &[u32]) -> (Vec<u32>, Prefix) {
        let mut prefix = Prefix::Start { salt };
        let mut found = Vec::new();
        let most = tokens.len().saturating_sub(1) / self.block_size;
        for chunk in tokens.chunks_exact(self.block_size).take(most) {
            let key = Key {
                prefix,
                tokens: chunk.into(),
            };
            let Some(cached) = self.cache.get(&key) else {
                break;
            };
            found.push(cached.block);
            prefix = Prefix::After(cached.serial);
        }
        (found, prefix)
    }

    /// How many of these blocks nobody refers to.
    pub fn count_free(&self, blocks: &[u32]) -> usize {
        let is_free = |block: &&u32| self.blocks[**block as usize].references == 0;
        blocks.iter().filter(is_free).count()
    }

    /// Refers to blocks that [`BlockPool::lookup`] found.
    pub fn share(&mut self, blocks: &[u32]) {
        for &block in blocks {
            if self.blocks[block as usize].references == 0 {
                self.unlink(block);
            }
            self.blocks[block as usize].references += 1;
        }
    }

    /// Takes the block that was free for the longest time; what it cached is forgotten.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.first_free;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        let state = &mut self.blocks[block as usize];
        state.references = 1;
        if let Some(key) = state.cached.take() {
            self.cache.remove(&key);
        }
        Some(block)
    }

    /// Gives back a sequence's blocks, in the order of its tokens. They are queued in reverse: the
    /// end of a prefix is of use to fewer others than its beginning, so it goes first.
    pub fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let state = &mut self.blocks[block as usize];
            debug_assert!(state.references > 0, "block {block} is freed twice");
            state.references -= 1;
            if state.references == 0 {
                if state.cached.is_some() {
                    self.push_free_last(block);
                } else {
                    self.push_free_first(block);
                }
            }
        }
    }

    /// Makes a full, computed block findable. Returns what the block after it follows. When the same
    /// tokens are cached in another block already, that one stays the findable one.
    pub fn register(&mut self, prefix: Prefix, tokens: &[u32], block: u32) -> Prefix {
        debug_assert_eq!(tokens.len(), self.block_size);
        let key = Key {
            prefix,
            tokens: tokens.into(),
        };
        if let Some(cached) = self.cache.get(&key) {
            return Prefix::After(cached.serial);
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        debug_assert!(self.blocks[block as usize].cached.is_none());
        self.blocks[block as usize].cached = Some(key.clone());
        self.cache.insert(key, Cached { block, serial });
        Prefix::After(serial)
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        match previous {
            NONE => self.first_free = next,
            previous => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => self.last_free = previous,
            next => self.blocks[next as usize].previous = previous,
        }
        self.free -= 1;
    }

    fn push_free_last(&mut self, block: u32) {
        let previous = self.last_free;
        self.blocks[block as usize].previous = previous;
        self.blocks[block as usize].next = NONE;
        match previous {
            NONE => self.first_free = block,
            previous => self.blocks[previous as usize].next = block,
        }
        self.last_free = block;
        self.free += 1;
    }

    fn push_free_first(&mut self, block: u32) {
        let next = self.first_free;
        self.blocks[block as usize].next = next;
        self.blocks[block as usize].previous = NONE;
        match next {
            NONE => self.last_free = block,
            next => self.blocks[next as usize].previous = block,
        }
        self.first_free = block;
        self.free += 1;
    }

    /// Checks every invariant against the references that the sequences hold: for tests and debug
    /// builds.
    ///
    /// # Errors
    /// The first invariant that does not hold, in words.
    pub fn check<'a>(&self, held: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut references = vec![0u32; self.blocks.len()];
        for &block in held.flatten() {
            references[block as usize] += 1;
        }
        let mut listed = vec![false; self.blocks.len()];
        let (mut at, mut before, mut count) = (self.first_free, NONE, 0);
        while at != NONE {
            let block = &self.blocks[at as usize];
            if listed[at as usize] || block.previous != before {
                return Err(format!("the free list is broken at block {at}"));
            }
            listed[at as usize] = true;
            count += 1;
            (before, at) = (at, block.next);
        }
        if count != self.free || before != self.last_free {
            return Err(format!(
                "{count} blocks are listed as free, not {}",
                self.free
            ));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if block.references != references[index] {
                return Err(format!(
                    "block {index} counts {} references, sequences hold {}",
                    block.references, references[index]
                ));
            }
            if listed[index] != (block.references == 0) {
                return Err(format!("block {index} is both free and in use, or neither"));
            }
            if let Some(key) = &block.cached
                && self.cache.get(key).map(|cached| cached.block) != Some(index as u32)
            {
                return Err(format!("block {index} is cached but not found"));
            }
        }
        let cached = self.blocks.iter().filter(|block| block.cached.is_some());
        match cached.count() == self.cache.len() {
            true => Ok(()),
            false => Err("the cache refers to blocks that do not know of it".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 7;

    fn fill(pool: &mut BlockPool, tokens: &[u32]) -> Vec<u32> {
        let mut prefix = Prefix::Start { salt: SALT };
        let mut blocks = Vec::new();
        for chunk in tokens.chunks_exact(pool.block_size()) {
            let block = pool.allocate().expect("a free block");
            prefix = pool.register(prefix, chunk, block);
            blocks.push(block);
        }
        blocks
    }

    #[test]
    fn a_prefix_is_found_until_its_blocks_are_taken() {
        let mut pool = BlockPool::new(4, 2);
        let blocks = fill(&mut pool, &[1, 2, 3, 4, 5, 6]);
        pool.release(&blocks);
        assert_eq!(pool.free(), 4);
        assert_eq!(pool.lookup(SALT, &[1, 2, 3, 4, 9]).0, blocks[..2]);
        assert_eq!(pool.lookup(SALT, &[1, 2, 9, 9, 9]).0, blocks[..1]);
        // The never used block goes first, then the end of the chain.
        let taken: Vec<u32> = (0..2).filter_map(|_| pool.allocate()).collect();
        assert_eq!(taken[1], blocks[2]);
        assert_eq!(pool.lookup(SALT, &[1, 2, 3, 4, 5, 6, 7]).0, blocks[..2]);
        pool.check([taken.as_slice()].into_iter()).unwrap();
    }

    #[test]
    fn a_full_hit_leaves_one_token_to_compute() {
        let mut pool = BlockPool::new(4, 2);
        let blocks = fill(&mut pool, &[1, 2, 3, 4]);
        assert_eq!(pool.lookup(SALT, &[1, 2, 3, 4]).0, blocks[..1]);
        assert_eq!(pool.lookup(SALT, &[]).0, []);
    }

    #[test]
    fn salts_and_positions_are_told_apart() {
        let mut pool = BlockPool::new(8, 2);
        fill(&mut pool, &[1, 2, 3, 4]);
        assert_eq!(pool.lookup(SALT + 1, &[1, 2, 3]).0, []);
        assert_eq!(pool.lookup(SALT, &[3, 4, 5]).0, []);
    }

    #[test]
    fn equal_blocks_computed_twice_keep_one_entry() {
        let mut pool = BlockPool::new(4, 2);
        let first = fill(&mut pool, &[1, 2, 3, 4]);
        let second = fill(&mut pool, &[1, 2, 3, 4]);
        assert_eq!(pool.lookup(SALT, &[1, 2, 3, 4, 5]).0, first);
        pool.check([first.as_slice(), &second].into_iter()).unwrap();
        pool.release(&first);
        pool.release(&second);
        pool.check([].into_iter()).unwrap();
    }

    #[test]
    fn sharing_counts_references() {
        let mut pool = BlockPool::new(2, 2);
        let blocks = fill(&mut pool, &[1, 2]);
        pool.release(&blocks);
        assert_eq!(pool.count_free(&blocks), 1);
        pool.share(&blocks);
        pool.share(&blocks);
        assert_eq!((pool.free(), pool.count_free(&blocks)), (1, 0));
        pool.release(&blocks);
        assert_eq!(pool.free(), 1);
        pool.release(&blocks);
        assert_eq!(pool.free(), 2);
    }
}
