-- The version of what `system.get_state` tells. It is put before the scripts that change any of that.
-- It has functions only.
--
-- state    hash: version → a number; lapsed, history → see `read_version.lua`
--
-- Whoever changes what is told raises it in the same step: by one, or to the server's clock in
-- microseconds where that is more. So it rises however the clock steps, and does not fall back where the
-- data is lost.
-- Cost     O(1).
local function version_of(state)
  local version = redis.pcall('HGET', state, 'version')
  if type(version) == 'table' then
    -- Somebody wrote something else there.
    redis.call('DEL', state)
    return 0
  end
  return tonumber(version or 0) or 0
end

local function raise_version(state, micros)
  local version = string.format('%.0f', math.max(version_of(state) + 1, micros))
  redis.call('HSET', state, 'version', version)
  return version
end
