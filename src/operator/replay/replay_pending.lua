-- Publishes pending entries again and takes them from the consumers that hold them.
--
-- Atomically, each only if it is still pending as the caller saw it (`move_held`). Repeating a call replays nothing
-- twice. What was replayed is told as `operator.replayed` in the same step.
--
-- KEYS[1]   the stream
-- KEYS[2..] the claim counters of the owners, in the order of their names in ARGV; then the
--           broadcast, unless it lies in another slot
-- ARGV[1]   the run that the call belongs to
-- ARGV[2]   who replays
-- ARGV[3]   the group
-- ARGV[4]   how long a claim counter outlives its last change, in milliseconds
-- ARGV[5..] the owners and the entries, as `move_held` takes them
-- Returns   {error, then for each entry its id as a new event}: '' for one that is not pending like
--           that any more. After an error (empty: none) nothing more was replayed.
-- Cost      O(k log n) for k entries and n pending
local answer, moved = move_held(KEYS[1], ARGV[3], ARGV[4], 1, 5)
tell_moved(KEYS[2 + tonumber(ARGV[5])], ARGV[1], ARGV[2], 'pending', KEYS[1], KEYS[1], moved)
return answer
