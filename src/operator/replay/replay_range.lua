-- Publishes copies of entries of a stream.
--
-- Atomically, each only if it was not copied within the window, which a marker remembers (`copy_entries`). So a run that
-- was interrupted can be repeated, and repeating a call copies nothing twice. What was copied is told as
-- `operator.replayed` in the same step.
--
-- KEYS[1]   the stream
-- KEYS[2..] the marker of each entry, then the broadcast, unless it lies in another slot
-- ARGV[1]   the run that the call belongs to
-- ARGV[2]   who replays
-- ARGV[3]   how long a marker lives, in milliseconds
-- ARGV[4]   1: copy what was copied already (by another run)
-- ARGV[5..] the entries, as `copy_entries` takes them
-- Returns   {error, then for each entry the id of its copy}: '' for one that was copied already.
--           After an error (empty: none) nothing more was copied.
-- Cost      O(entries)
local answer, moved = copy_entries(KEYS[1], ARGV[1], ARGV[3], ARGV[4] == '1', 1, 5)
tell_moved(KEYS[2 + tonumber(ARGV[5])], ARGV[1], ARGV[2], 'range', KEYS[1], KEYS[1], moved)
return answer
