//! The book over a disk that loses what was not synced, at every write boundary; and the same over one whose sync
//! does nothing, which must be seen to fail.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::crypto::{Authentication, Encryption, Suite};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// xorshift64*: the same run for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

struct Disk {
    stable: [Vec<u8>; 2],
    pending: Vec<(Area, usize, Vec<u8>)>,
    random: Random,
    /// Writes and syncs until the power goes.
    power: usize,
    /// One sync in so many fails, and loses pages as the kernel does; 0 for none.
    sync_fails: u64,
    /// The sync is left out.
    lies: bool,
}

impl Disk {
    fn land(&mut self, area: Area, offset: usize, sector: &[u8]) {
        let file = &mut self.stable[area as usize];
        file.resize(file.len().max(offset + sector.len()), 0);
        file[offset..offset + sector.len()].copy_from_slice(sector);
    }

    /// Of what was not synced, any sectors may have arrived.
    fn lose(&mut self, area: Option<Area>) {
        let (lost, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(of, ..)| area.is_none_or(|area| area == *of));
        self.pending = kept;
        let lost: Vec<(Area, usize, Vec<u8>)> = lost;
        for (area, offset, bytes) in lost {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if self.random.below(2) == 0 {
                    self.land(area, offset + number * SECTOR, sector);
                }
            }
        }
    }

    fn spend(&mut self) -> io::Result<()> {
        self.power = self.power.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }
}

#[derive(Clone)]
struct Fake(Rc<RefCell<Disk>>);

impl Fake {
    fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            stable: [vec![0; BLOCK], Vec::new()],
            pending: Vec::new(),
            random: Random(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9)),
            power: usize::MAX,
            sync_fails: 0,
            lies: false,
        })))
    }
}

impl Storage for Fake {
    fn read(&mut self, area: Area) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().stable[area as usize].clone())
    }

    fn write(&mut self, area: Area, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.spend()?;
        disk.pending.push((area, offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, area: Area) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.spend()?;
        if disk.lies {
            return Ok(());
        }
        let fails = disk.sync_fails;
        if fails > 0 && disk.random.below(fails) == 0 {
            disk.lose(Some(area));
            return Err(io::Error::other("EIO"));
        }
        let (synced, kept) = std::mem::take(&mut disk.pending).into_iter().partition(|(of, ..)| *of == area);
        disk.pending = kept;
        let synced: Vec<(Area, usize, Vec<u8>)> = synced;
        for (area, offset, bytes) in synced {
            disk.land(area, offset, &bytes);
        }
        Ok(())
    }
}

fn purpose(direction: Direction) -> Purpose {
    Purpose::new(direction, Suite::new(Encryption::Aes128Gcm, Authentication::None, None).unwrap())
}

/// Two outbound keys and an inbound one.
const KEYS: [(Fingerprint, Direction); 3] =
    [([1; 16], Direction::Outbound), ([2; 16], Direction::Outbound), ([3; 16], Direction::Inbound)];

fn open(disk: &Fake) -> io::Result<Book<Fake>> {
    Book::open(disk.clone(), Zeroizing::new([7; 32]))
}

fn lease(book: &mut Book<Fake>, id: &Fingerprint) -> Arc<Lease> {
    Arc::new(Lease::starting_after(book.begin(id), Box::new(|| {})))
}

fn grant(id: Fingerprint, direction: Direction, lease: &Arc<Lease>) -> Grant {
    Grant { id, purpose: purpose(direction), lease: Some(lease.clone()), limit: u64::MAX }
}

/// The highest number of each key that was used so far.
type Used = [u64; KEYS.len()];

/// One life: leases begin, numbers are used, leases are extended and lowered, until the power goes or the daemon ends
/// in order. Returns how many keys were refused, or which number would have been used twice.
fn live(disk: &Fake, power: usize, used: &mut Used, clock: &mut Instant) -> Result<usize, String> {
    disk.0.borrow_mut().power = power;
    let outcome = (|| {
        let Ok(mut book) = open(disk) else { return Ok(0) };
        let mut leases = Vec::new();
        let mut refused = 0;
        for (key, (id, direction)) in KEYS.into_iter().enumerate() {
            match book.known(&id) {
                Some(Known::Lost) => {
                    refused += 1;
                    continue;
                }
                None if used[key] > 0 => return Err(format!("key {key}: no record of {}", used[key])),
                _ => {}
            }
            let lease = lease(&mut book, &id);
            if lease.reached() < used[key] {
                return Err(format!("key {key}: begins at {}, used up to {}", lease.reached(), used[key]));
            }
            leases.push((key, grant(id, direction, &lease), lease));
        }
        let grants: Vec<_> = leases.iter().map(|(_, grant, _)| grant.clone()).collect();
        let _ = book.grant(&grants, *clock);
        let steps = disk.0.borrow_mut().random.below(40);
        for _ in 0..steps {
            *clock += Duration::from_millis(disk.0.borrow_mut().random.below(900));
            for (key, _, lease) in &leases {
                let room = lease.ceiling().saturating_sub(lease.reached());
                let wanted = disk.0.borrow_mut().random.below(3) * room.div_ceil(2);
                let number = (lease.reached() + wanted).min(lease.ceiling());
                if wanted > 0 && number > lease.reached() {
                    lease.reach(number);
                    used[*key] = number;
                }
            }
            let _ = book.extend(*clock);
            let _ = book.lower(*clock, || true);
        }
        if disk.0.borrow_mut().random.below(4) == 0 {
            let _ = book.release();
        }
        Ok(refused)
    })();
    disk.0.borrow_mut().lose(None);
    outcome
}

/// Many lives over one disk, each cut off at a random write or sync.
fn lives(seed: u64, sync_fails: u64, lies: bool) -> Result<usize, String> {
    let disk = Fake::new(seed);
    disk.0.borrow_mut().lies = lies;
    let (mut used, mut clock, mut refused) = (Used::default(), Instant::now(), 0);
    for _ in 0..30 {
        let power = disk.0.borrow_mut().random.below(60) as usize;
        disk.0.borrow_mut().sync_fails = sync_fails;
        refused += live(&disk, power, &mut used, &mut clock)?;
    }
    Ok(refused)
}

#[test]
fn no_number_is_used_twice_wherever_the_power_goes() {
    for seed in 0..80 {
        assert_eq!(lives(seed, 0, false), Ok(0), "seed {seed}");
    }
}

#[test]
fn no_number_is_used_twice_over_a_disk_that_fails() {
    for seed in 0..80 {
        lives(seed, 3, false).unwrap_or_else(|twice| panic!("seed {seed}: {twice}"));
    }
}

/// The same with the sync left out is seen to fail: were it left out of the book, the tests above would tell.
#[test]
fn without_the_sync_numbers_are_used_twice() {
    let seen = (0..80).filter(|seed| lives(*seed, 0, true).is_err()).count();
    assert!(seen > 60, "{seen}");
}

/// Every write and sync of one life in turn is the last.
#[test]
fn every_write_boundary_of_a_first_life_is_safe() {
    for power in 0..80 {
        for seed in 0..8 {
            let disk = Fake::new(seed);
            let (mut used, mut clock) = (Used::default(), Instant::now());
            for power in [power, usize::MAX, usize::MAX] {
                assert_eq!(live(&disk, power, &mut used, &mut clock), Ok(0), "power {power}, seed {seed}");
            }
        }
    }
}

/// A book with one outbound and one inbound lease.
fn granted(disk: &Fake) -> (Book<Fake>, Arc<Lease>, Arc<Lease>) {
    let mut book = open(disk).unwrap();
    let leases = [KEYS[0], KEYS[2]].map(|(id, direction)| (id, direction, lease(&mut book, &id)));
    let grants = leases.each_ref().map(|(id, direction, lease)| grant(*id, *direction, lease));
    book.grant(&grants, Instant::now()).unwrap();
    let [(.., out), (.., inbound)] = leases;
    (book, out, inbound)
}

#[test]
fn a_failed_sync_raises_nothing_and_the_next_try_goes_elsewhere() {
    let disk = Fake::new(1);
    let (mut book, out, _) = granted(&disk);
    let ceiling = out.ceiling();
    out.reach(ceiling);
    disk.0.borrow_mut().sync_fails = 1;
    let places: Vec<_> = (0..3)
        .map(|_| {
            assert!(book.extend(Instant::now()).is_err());
            assert_eq!(out.ceiling(), ceiling, "the worker stops here");
            book.records[0].tried
        })
        .collect();
    assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "{places:?}");
    assert!(!places.contains(&book.records[0].place), "what is known to be whole is never written");
    disk.0.borrow_mut().sync_fails = 0;
    book.extend(Instant::now()).unwrap();
    assert!(out.ceiling() > ceiling, "the disk works again");
}

#[test]
fn all_leases_are_extended_in_one_sync() {
    let disk = Fake::new(1);
    let (mut book, out, inbound) = granted(&disk);
    book.extend(Instant::now()).unwrap();
    disk.0.borrow_mut().power = 0;
    book.extend(Instant::now()).expect("nothing to do needs no disk");
    out.reach(out.ceiling());
    inbound.reach(inbound.ceiling());
    // Two places and a sync; two witnesses and a sync.
    disk.0.borrow_mut().power = 6;
    book.extend(Instant::now()).unwrap();
    assert_eq!(disk.0.borrow().power, 0);
}

#[test]
fn a_number_beyond_the_ceiling_that_a_peer_used_is_granted_next() {
    let disk = Fake::new(1);
    let (mut book, _, inbound) = granted(&disk);
    inbound.reach(1 << 20);
    book.extend(Instant::now()).unwrap();
    let above = inbound.ceiling() - (1 << 20);
    assert!(
        (64..=4 * Pace::BURST).contains(&above),
        "{above}: a jump is no rate: after a crash the peer would be refused that long"
    );
    book.extend(Instant::now()).unwrap();
    assert_eq!(inbound.ceiling() - (1 << 20), above);
}

#[test]
fn a_peer_that_became_slow_is_not_refused_for_long_after_a_crash() {
    let disk = Fake::new(1);
    let (mut book, _, inbound) = granted(&disk);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    // A jump first, then half a million in a second.
    inbound.reach(100_000);
    book.extend(start).unwrap();
    while inbound.reached() < 500_000 {
        inbound.reach(inbound.ceiling().min(500_000));
        book.extend(at(1)).unwrap();
    }
    assert!(inbound.ceiling() >= 700_000, "{}", inbound.ceiling());
    let before = inbound.ceiling();
    for second in 2..100 {
        book.extend(at(second)).unwrap();
    }
    assert!(inbound.ceiling() >= before, "nobody took it back");
    book.lower(at(100), || false).unwrap();
    assert_eq!(inbound.ceiling(), 500_064);
    // A worker that looked before it was lowered used one more.
    book.lower(at(101), || {
        inbound.reach(500_065);
        true
    })
    .unwrap();
    drop(book);
    disk.0.borrow_mut().lose(None);
    let begins = open(&disk).unwrap().begin(&KEYS[2].0);
    assert!((500_065..before).contains(&begins), "{begins}");
}

#[test]
fn an_orderly_end_burns_nothing() {
    let disk = Fake::new(1);
    let (mut book, out, inbound) = granted(&disk);
    out.reach(17);
    inbound.reach(40);
    book.release().unwrap();
    assert_eq!((out.ceiling(), inbound.ceiling()), (17, 40), "and nothing more is used");
    let mut book = open(&disk).unwrap();
    assert_eq!((book.begin(&KEYS[0].0), book.begin(&KEYS[2].0)), (17, 40));
}

#[test]
fn a_key_set_up_again_goes_on_above_and_its_first_sa_ends_where_it_was() {
    let disk = Fake::new(1);
    let (mut book, first, _) = granted(&disk);
    let ceiling = first.ceiling();
    let second = lease(&mut book, &KEYS[0].0);
    assert_eq!((second.reached(), second.ceiling()), (ceiling, ceiling));
    first.reach(ceiling);
    book.extend(Instant::now()).unwrap();
    assert_eq!(first.ceiling(), ceiling, "a worker may still hold it");
    book.grant(&[grant(KEYS[0].0, Direction::Outbound, &second)], Instant::now()).unwrap();
    assert!(second.ceiling() > ceiling);
}

#[test]
fn a_place_that_was_damaged_or_put_back_costs_the_key_and_no_other() {
    let disk = Fake::new(1);
    let (mut book, out, inbound) = granted(&disk);
    let old = disk.0.borrow().stable.clone();
    out.reach(out.ceiling());
    inbound.reach(inbound.ceiling());
    book.extend(Instant::now()).unwrap();
    let newest = slot::offset(0, book.records[0].place) as usize;
    let new = disk.0.borrow().stable.clone();
    let known = |stable: [Vec<u8>; 2], id: &Fingerprint| {
        let disk = Fake::new(1);
        disk.0.borrow_mut().stable = stable;
        open(&disk).unwrap().known(id)
    };
    let (first, other) = (KEYS[0].0, KEYS[2].0);
    assert!(matches!(known(new.clone(), &first), Some(Known::Record { .. })));
    for byte in [0, 7, 30, 50, 1000, BLOCK - 1] {
        let mut damaged = new.clone();
        damaged[0][newest + byte] ^= 1;
        assert_eq!(known(damaged.clone(), &first), Some(Known::Lost), "byte {byte}");
        assert!(matches!(known(damaged, &other), Some(Known::Record { .. })));
    }
    let mut zeroed = new.clone();
    zeroed[0][newest..newest + BLOCK].fill(0);
    assert_eq!(known(zeroed, &first), Some(Known::Lost));
    let put_back = [old[0].clone(), new[1].clone()];
    assert_eq!(known(put_back.clone(), &first), Some(Known::Lost));
    assert_eq!(known(put_back, &other), Some(Known::Lost));
    let cut = [new[0][..BLOCK].to_vec(), new[1].clone()];
    assert_eq!(known(cut, &first), None, "no record: refused, unless it is declared");
    // The witness alone: the places are whole, so they count.
    for witness in [Vec::new(), old[1].clone(), vec![9; new[1].len()]] {
        assert_eq!(known([new[0].clone(), witness], &first), known(new.clone(), &first));
    }
}
