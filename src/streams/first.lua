-- Finds out whether an event is the first of its id within the window.
--
-- Atomically: the first one that asks is named by the mark that publishing with deduplication leaves as well
-- (publish.lua), and stays it however often it asks. Another one's window begins again; it never gets shorter,
-- since that of an event that is published for later is longer. What names no place in the bus counts as no mark,
-- and neither does one that names the event that ended unrun: of all that know so, one takes its place.
--
-- KEYS[1] the mark of the event's id
-- KEYS[2] what is said of this event to others of its id, should it be the first (absent: nothing)
-- ARGV[1] the name of the event: the entry as which it was added
-- ARGV[2] the window, in ms
-- ARGV[3] what is said until it has an end ('' where KEYS[2] is absent)
-- ARGV[4] the name of an event of the id that ended unrun (absent: nobody knows one)
-- Returns '' if it is the first; else the first one's place: an entry, or a due time (ms)
-- Cost    O(1)
local first = redis.pcall('GET', KEYS[1])
local is_place = type(first) == 'string' and #first <= 41 and string.match(first, '^%d+%-?%d*$')
if is_place and first ~= ARGV[1] and first ~= ARGV[4] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
  return first
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if KEYS[2] and not redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2], 'NX') then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return ''
