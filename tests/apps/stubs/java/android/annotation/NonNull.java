// The annotation by which Android's API says what may be null; Kotlin's compiler knows it by this name.
package android.annotation;

import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;

@Retention(RetentionPolicy.CLASS)
public @interface NonNull {}
